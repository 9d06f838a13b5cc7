"""Small drawings of a method's quality against its sparsity: one for each model, task and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sparsebench.reports import notation

WIDTH, HEIGHT, FOOT = 200, 96, 14
"""Of the drawing, and of the room for its axis, in its own units."""


@dataclass(frozen=True)
class Curve:
    """One drawing, with what stands beside it."""

    task: str
    task_page: str
    detail: str
    svg: Markup


def curves(rows: Sequence[Any]) -> list[Curve]:
    """The drawings of one method: of every headline metric that was compared at two levels or more.

    Args:
        rows: Rows as `views.row_views` makes them.
    """
    groups: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        if row["gain"] is not None and row["sparsity"] is not None and row["delta_low"] is not None:
            key = (row["task"], row["metric"], row["model"], row["config"], row["mode"], row["protocol"], row["source"])
            groups.setdefault(key, []).append(row)
    models = {row["model"] for row in rows}
    found = []
    for (task, metric, model, config, *_), members in sorted(groups.items()):
        if len({round(row["sparsity"], 4) for row in members}) > 1:
            parts = [metric, notation.model_name(model) if len(models) > 1 else "", notation.printable(config, 60)]
            detail = ", ".join(part for part in parts if part)
            found.append(Curve(task, members[0]["task_page"], detail, draw(members, f"{task}, {detail}")))
    return found


def draw(rows: Sequence[Any], label: str) -> Markup:
    """Change from the baseline against sparsity; better is up, and what falls out of the drawing is an arrow.

    Args:
        rows: Rows of one metric.
        label: What it shows, for those who cannot see it.
    """
    ordered = sorted(rows, key=lambda row: (row["sparsity"], row["seed"] or 0))
    margin = max((row["margin"] for row in rows if row["margin"]), default=0.0)
    deepest = 4 * margin if margin else max(abs(row["gain"]) for row in rows) * 1.1 or 1.0
    top = deepest / 2

    def x(row: Any) -> float:
        return 6 + (WIDTH - 12) * min(1.0, max(0.0, float(row["sparsity"])))

    def y(gain: float) -> float:
        return 4 + (HEIGHT - FOOT - 8) * (top - max(-deepest, min(top, gain))) / (top + deepest)

    parts = [f'<path class="zero" d="M0 {y(0):.1f}H{WIDTH}"/>']
    if margin:
        parts.append(f'<path class="margin" d="M0 {y(-margin):.1f}H{WIDTH}"/>')
    line = " ".join(f"{x(row):.1f},{y(row['gain']):.1f}" for row in ordered)
    parts.append(f'<polyline points="{line}"/>')
    for row in ordered:
        sign = 1 if row["higher_is_better"] else -1
        low, high = sorted((sign * row["delta_low"], sign * row["delta_high"]))
        at, middle = x(row), y(row["gain"])
        verdict = row["verdict"].replace(" ", "-") if row["verdict"] in notation.VERDICTS else ""
        shape = (
            f'<path class="mark" d="M{at - 3.5:.1f} {middle - 3:.1f}h7l-3.5 6z"/>'
            if row["gain"] < -deepest
            else f'<circle class="mark" cx="{at:.1f}" cy="{middle:.1f}" r="3"/>'
        )
        parts.append(f'<g class="{verdict}"><path class="range" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>{shape}</g>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        at = {"start": 2, "middle": WIDTH / 2, "end": WIDTH - 2}[anchor]
        parts.append(f'<text x="{at:g}" y="{HEIGHT - 2}" text-anchor="{anchor}">{100 * share:g}%</text>')
    said = Markup.escape(f"{label}: {_in_words(ordered)}")
    return Markup(  # numbers, a fixed set of names, and a label that is escaped
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )


def _in_words(rows: Sequence[Any]) -> str:
    return "; ".join(f"at {notation.percent(row['sparsity'])} {row['verdict']}" for row in rows)
