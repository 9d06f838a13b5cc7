"""Pages of the leaderboard: one a family, and one with everything while that is small; long ones come in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsebench.reports import notation
from sparsebench.reports.safe import SafeSparsity
from sparsebench.reports.views import Pages, Row, family_order, fixed_columns, safe_table, with_baselines

Page = tuple[str, str, dict[str, Any]]


def families_of(rows: Sequence[Row], most_rows: int) -> dict[str, list[Row]]:
    """Rows of each leaderboard by its name, with the baselines that they are compared with; the first is the first."""
    families = family_order(row["family"] for row in rows)
    groups: dict[str, list[Row]] = {}
    if len(rows) <= most_rows or not families:
        groups["all"] = with_baselines(rows, [])
    for family in families:
        mine = [row for row in rows if row["family"] == family]
        groups[family or "unreadable"] = with_baselines(mine, rows)
    return groups


def files_of(groups: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """The first page of each leaderboard."""
    return {name: f"leaderboard/{'index' if k == 0 else notation.slug(name)}.html" for k, name in enumerate(groups)}


def leaderboard_pages(
    groups: Mapping[str, Sequence[Row]], safe: Sequence[SafeSparsity], pages: Pages, most_rows: int
) -> Iterator[Page]:
    """Path, template and context of each page."""
    files = files_of(groups)
    for name, rows in groups.items():
        stem = files[name].removesuffix(".html")
        parts = [rows[i : i + most_rows] for i in range(0, max(len(rows), 1), most_rows)]
        places = [f"{stem}{f'-{k + 1}' if k else ''}.html" for k in range(len(parts))]
        tabs = [{"name": n, "file": _last(files[n]), "rows": len(r), "current": n == name} for n, r in groups.items()]
        mine = [s for s in safe if s.row["family"] == name]
        for k, part in enumerate(parts):
            context = {
                "title": f"Leaderboard: {name}" + (f", part {k + 1}" if k else ""),
                "caption": f"Results, {name}" + (f", part {k + 1} of {len(parts)}" if len(parts) > 1 else ""),
                "tabs": tabs,
                "families": family_order(row["family"] for row in part if row["family"]) if name == "all" else [],
                "tasks": sorted({row["task"] for row in rows if row["task"]}, key=notation.by_number),
                "verdicts": [v for v in notation.VERDICTS if any(row["verdict"] == v for row in rows)],
                "rows": part,
                "total": len(rows),
                "fixed": fixed_columns(rows),
                "pages": [{"file": _last(place), "current": j == k} for j, place in enumerate(places)],
                "safe": safe_table(mine if k == 0 else [], pages),
            }
            yield places[k], "leaderboard.html", context


def _last(path: str) -> str:
    return path.rsplit("/", 1)[1]
