"""The static leaderboard: plain files that load nothing from anywhere else and work without JavaScript.

Two builds of the same results are the same bytes. Everything that comes from a record is escaped by the templates, and
reaches file names and addresses through `notation.slug` alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsebench.errors import InputError
from sparsebench.reports import ledger, notation, tables
from sparsebench.reports.atom import feed
from sparsebench.reports.cell_pages import cell_page
from sparsebench.reports.claim_pages import STATUSES, claim_view, cost_views, feed_entries
from sparsebench.reports.collect import COLUMNS, table_of
from sparsebench.reports.comparisons import MANY, Judged
from sparsebench.reports.curves import curves
from sparsebench.reports.finding_pages import NOT_MEASURED, finding_views
from sparsebench.reports.leaderboard_pages import families_of, files_of, leaderboard_pages
from sparsebench.reports.ledger import TIERS, LedgerClaim, LedgerRow, evaluate_sources
from sparsebench.reports.overview import facts, source_line
from sparsebench.reports.processes import each
from sparsebench.reports.rules import declares_only, with_largest_loss
from sparsebench.reports.safe import costs_of_keeping, safe_sparsities
from sparsebench.reports.sources import Source, open_sources
from sparsebench.reports.task_pages import task_pages
from sparsebench.reports.templating import template_environment
from sparsebench.reports.verdicts import judge
from sparsebench.reports.views import (
    Cards,
    Descriptions,
    FigureView,
    Pages,
    Row,
    family_order,
    figure_views,
    fixed_columns,
    installed_method,
    row_views,
    safe_table,
    verdict_counts,
)

if TYPE_CHECKING:
    from sparsebench.findings.definition import Finding

HERE = Path(__file__).parent
MANIFEST = ".sparsebench-site"
ROWS_OF_A_PAGE = 250
"""Rows of one leaderboard page; more are split into parts."""
ROWS_OF_A_FIGURE = 150
"""Rows above which a figure is too crowded for the overview."""
ROWS_OF_A_TABLE = 600
"""Rows of the table on a method's or task's page."""
LARGEST_LOSS = 0.05
"""The loss, relative to the baseline, at which each method's one number says what it costs."""
UNSPARSE = "The system as it is, which the others are compared with."
METHODS_SHOWN = 40
"""Lines of the overview's tables of methods."""
FAILED_SHOWN = 100
CHANGES_SHOWN = 20
CURVES_SHOWN = 24
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
NAVIGATION = (
    ("Overview", "index.html"),
    ("Leaderboard", "leaderboard/index.html"),
    ("Methods", "methods/index.html"),
    ("Tasks", "tasks/index.html"),
    ("Claims", "claims.html"),
    ("Findings", "findings.html"),
    ("Downloads", "downloads.html"),
    ("About", "about.html"),
)


def build_site(
    results_folders: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    cards: Cards = installed_method,
    descriptions: Descriptions | None = None,
    claims: Sequence[LedgerClaim] = (),
    findings: Sequence[Finding] | None = None,
) -> Path:
    """Build the site of one or more results folders.

    Pages of an earlier build into the same folder are replaced; other files there are left alone.

    Args:
        results_folders: Folders that `sparsebench run` wrote.
        out: Where the site goes.
        cards: The card of a method by its id; those that are installed unless told.
        descriptions: What each task asks, by its id; those of the package unless told.
        claims: Claims of papers that the results are asked about.
        findings: Findings that are shown; those of the package unless told, where claims are or one was measured.

    Returns:
        The site's `index.html`.

    Raises:
        InputError: A folder without results, or a place that cannot be written to.
    """
    if isinstance(results_folders, str | os.PathLike):
        results_folders = [results_folders]
    sources = open_sources(results_folders)
    judged = judge(sources, changes=CHANGES_SHOWN)
    table = table_of(judged, sources)
    described = _descriptions() if descriptions is None else descriptions
    asked = evaluate_sources(claims, sources)
    found = finding_views(_findings() if findings is None else findings, sources)
    if findings is None and not claims and all(view["status"] == NOT_MEASURED for view in found):
        found = []
    builder = _Builder(Path(out), sources, judged, table, cards, described, asked, found, _at_largest_loss(sources))
    try:
        builder.build()
    except OSError as error:
        raise InputError(f"cannot write the site to {out}: {error.strerror}") from None
    return builder.out / "index.html"


def _descriptions() -> Descriptions:
    from sparsebench.tasks.registry import definitions

    return {definition.task: definition.description or definition.title for definition in definitions()}


def _at_largest_loss(sources: Sequence[Source]) -> pd.DataFrame | None:
    """The table as if every suite had declared `LARGEST_LOSS`; None where all have."""
    if all(declares_only(source, LARGEST_LOSS) for source in sources):
        return None
    return table_of(judge(with_largest_loss(sources, LARGEST_LOSS)))


def _findings() -> list[Finding]:
    from sparsebench.findings.definition import findings

    return findings()


@dataclass(frozen=True)
class _Page:
    """A page that waits to be written; what it shows is put together by whoever writes it."""

    path: str
    template: str
    section: str
    context: Callable[[], Mapping[str, Any]]


class _Builder:
    """One build: what all pages share, and what has been written."""

    def __init__(
        self,
        out: Path,
        sources: Sequence[Source],
        judged: Sequence[Judged],
        table: pd.DataFrame,
        cards: Cards,
        descriptions: Descriptions,
        claims: Sequence[LedgerRow],
        findings: Sequence[dict[str, Any]],
        limited: pd.DataFrame | None,
    ) -> None:
        self.claims, self.findings = claims, findings
        absent = {name for name, shown in (("Claims", claims), ("Findings", findings)) if not shown}
        self.nav = [entry for entry in NAVIGATION if entry[0] not in absent]
        self.out, self.sources, self.judged, self.table = out, sources, judged, table
        self.cards, self.descriptions = cards, descriptions
        self.pages = Pages((item.source.name, item.cell.id) for item in judged)
        self.rows = row_views(table, self.pages)
        self.headline = [row for row in self.rows if row["headline"] or row["status"] == "failed"]
        self.safe = safe_sparsities(table)
        self.costs = costs_of_keeping(table if limited is None else limited)
        self.written: list[str] = []
        self.waiting: list[_Page] = []
        self.environment = template_environment(HERE / "templates")
        self.facts = facts(self.headline, judged, sources)

    def build(self) -> None:
        """Write everything."""
        self.out.mkdir(parents=True, exist_ok=True)
        figures = figure_views(self.table)
        for figure in figures:
            self._file(figure.file, figure.text.encode())
        groups = families_of(self.headline, ROWS_OF_A_PAGE)
        for path, template, context in leaderboard_pages(groups, self.safe, self.pages, ROWS_OF_A_PAGE):
            self._page(path, template, "Leaderboard", **context)
        self._index(figures, files_of(groups))
        self._methods()
        for path, template, context in task_pages(
            self.rows, self.judged, figures, self.pages, self.descriptions, ROWS_OF_A_TABLE
        ):
            self._page(path, template, "Tasks", **context)
        self._cells()
        if self.claims:
            self._claims()
        if self.findings:
            self._page("findings.html", "findings.html", "Findings", rows=self.findings)
        self._file(
            "feed.xml",
            feed("SparseBench: results", list(feed_entries(self.sources, self.judged, self.claims))).encode(),
        )
        self._downloads()
        self._page("about.html", "about.html", "About")
        self.written += each(self._render, self.waiting, worth=len(self.waiting) > MANY)
        for asset in sorted((HERE / "assets").iterdir()):
            self._file(f"assets/{asset.name}", asset.read_bytes())
        self._forget_earlier_build()

    def _page(self, path: str, template: str, section: str, **context: Any) -> None:
        self.waiting.append(_Page(path, template, section, lambda: context))

    def _render(self, page: _Page) -> str:
        text = self.environment.get_template(page.template).render(
            root="../" * page.path.count("/"),
            section=page.section,
            nav=self.nav,
            facts=self.facts,
            policy=POLICY,
            marks=notation.VERDICTS,
            **page.context(),
        )
        self._write(page.path, text.encode("utf-8", "replace"))
        return page.path

    def _write(self, path: str, content: bytes) -> None:
        place = self.out / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def _file(self, path: str, content: bytes) -> None:
        self._write(path, content)
        self.written.append(path)

    def _forget_earlier_build(self) -> None:
        """Remove pages of an earlier build that this one did not write."""
        manifest = self.out / MANIFEST
        kept = {*self.written}
        if manifest.is_file():
            for line in manifest.read_text(encoding="utf-8").splitlines():
                place = self.out / line
                if (
                    line not in kept
                    and ".." not in Path(line).parts
                    and not Path(line).is_absolute()
                    and place.is_file()
                ):
                    place.unlink()
        manifest.write_text("".join(f"{line}\n" for line in sorted(kept)), encoding="utf-8")

    def _index(self, figures: Sequence[FigureView], leaderboards: Mapping[str, str]) -> None:
        failed = [row for row in self.headline if row["status"] == "failed"]
        # One row of panels reads best; of those, the figure that compares most without being crowded.
        figure = min(figures, key=lambda f: (f.kinds, f.rows > ROWS_OF_A_FIGURE, -f.rows, f.file), default=None)
        self._page(
            "index.html",
            "index.html",
            "Overview",
            counts=verdict_counts(self.headline, lambda f: leaderboards.get(f, "leaderboard/index.html")),
            safe=safe_table(self.safe, self.pages, most=METHODS_SHOWN, fullest=True),
            costs=(costs := cost_views(self.costs, self.pages))[:METHODS_SHOWN],
            costs_left_out=max(0, len(costs) - METHODS_SHOWN),
            largest_loss=LARGEST_LOSS,
            tiers=TIERS,
            claims=[claim_view(row, self.pages) for row in self.claims],
            findings=self.findings,
            figure=figure,
            failed=[Row(row, page=self.pages.cell(row["source"], row["cell"])) for row in failed[:FAILED_SHOWN]],
            failed_left_out=max(0, len(failed) - FAILED_SHOWN),
            sources=[source_line(source, self.judged) for source in self.sources],
        )

    def _methods(self) -> None:
        """A page for each method and stack, and their list."""
        by_method: dict[str, list[Row]] = {}
        for row in self.headline:
            if row["method"]:
                by_method.setdefault(row["method"], []).append(row)
        listed: dict[str, list[dict[str, str]]] = {}
        for method, rows in sorted(by_method.items()):
            found = [card for card in map(self.cards, method.split("+")) if card is not None]
            is_baseline = all(row["role"] in ("baseline", "noise") for row in rows)
            path = self.pages.method(method)
            summary = found[0].card.summary if len(found) == 1 else UNSPARSE if is_baseline else f"{len(rows)} rows"
            family = "baselines" if is_baseline else rows[0]["family"]
            listed.setdefault(family, []).append({"title": method, "summary": summary, "file": path.split("/")[1]})
            shown = sorted(
                rows, key=lambda r: (r["task"], r["metric"], r["model"], r["sparsity"] or 0, r["config"], r["seed"])
            )
            self._page(
                path,
                "method.html",
                "Methods",
                name=method,
                cards=found,
                baseline=UNSPARSE if is_baseline else "",
                rows=shown[:ROWS_OF_A_TABLE],
                left_out=max(0, len(rows) - ROWS_OF_A_TABLE),
                fixed=fixed_columns(rows),
                caption=f"Headline metrics of {method}",
                curves=(drawn := curves(rows))[:CURVES_SHOWN],
                curves_left_out=max(0, len(drawn) - CURVES_SHOWN),
                safe=safe_table([s for s in self.safe if s.row["method"] == method], self.pages),
            )
        order = [f for f in family_order(listed) if f != "baselines"] + [f for f in listed if f == "baselines"]
        self._page("methods/index.html", "methods.html", "Methods", families=[(f, listed[f]) for f in order])

    def _cells(self) -> None:
        rows: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            rows.setdefault((row["source"], row["cell"]), []).append(row)

        for item in self.judged:
            key = item.source.name, item.cell.id
            context = partial(cell_page, item, rows[key], self.pages)
            self.waiting.append(_Page(self.pages.cell(*key), "cell.html", "Leaderboard", context))

    def _claims(self) -> None:
        rows = [claim_view(row, self.pages) for row in self.claims]
        counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
        self._page("claims.html", "claims.html", "Claims", rows=rows, counts=counts, tiers=TIERS)

    def _downloads(self) -> None:
        contents = {
            "results.csv": tables.csv(self.table).encode(),
            "results.json": tables.to_json(self.table).encode(),
            "results.parquet": tables.parquet(self.table),
            "results.tex": tables.latex(self.table).encode(),
            **({"claims.json": ledger.to_json(self.claims).encode()} if self.claims else {}),
        }
        files = []
        for name, content in contents.items():
            self._file(f"data/{name}", content)
            digest = hashlib.sha256(content).hexdigest()
            files.append({"name": name, "path": f"data/{name}", "size": len(content), "sha256": digest})
        columns = [(name, kind, meaning) for name, (kind, meaning) in COLUMNS.items()]
        self._page("downloads.html", "downloads.html", "Downloads", files=files, columns=columns, rows=len(self.table))
