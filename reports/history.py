"""What changed over several results folders of one suite, and when: steps, not wiggles.

Folders are given in the order of time. Each cell is compared with the folder in which its present step began: its
counts must be equal, and its samples are tested, all headline metrics of a folder together corrected by Holm. What
differs begins a new step, against which later folders are compared; so a slow drift shows when it has added up to more
than the margin, and a difference is reported once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.identity import canonical
from sparsebench.reports import notation
from sparsebench.reports.atom import Entry, feed
from sparsebench.reports.check import noise_in
from sparsebench.reports.check_counts import TOLERANCE, cell_rows
from sparsebench.reports.check_quality import SamplePair, pair_of_cells, quality_rows
from sparsebench.reports.check_result import CheckRow, name_of
from sparsebench.reports.gate_formats import difference
from sparsebench.reports.matching import Match, match
from sparsebench.reports.rules import conclusions
from sparsebench.reports.runs import without_trials
from sparsebench.reports.sources import Source, open_sources
from sparsebench.store import StoredCell

STEPS = ("improved", "regressed", "changed", "failed", "missing", "refused")
"""What begins a new step."""


@dataclass(frozen=True)
class Step:
    """Something that became different.

    Attributes:
        folder: The results folder in which it shows first.
        since: The one in which the step before it began.
        date: When the folder was measured, ISO 8601; empty if that was not recorded.
        commit: Of the code that measured it.
        name: The cell, as printed.
        what: The metric or count; empty for a whole cell.
        verdict: One of `STEPS`.
        detail: From what to what, and why.
    """

    folder: str
    since: str
    date: str
    commit: str
    name: str
    what: str
    verdict: str
    detail: str

    @property
    def title(self) -> str:
        """In a few words."""
        return f"{self.name}{': ' + self.what if self.what else ''} {self.verdict}"


@dataclass(frozen=True)
class History:
    """Steps over some folders.

    Attributes:
        folders: Their names, in order.
        steps: In order of time.
        cells: Cells of the last folder.
        alpha: Chance of a false alarm in each folder.
    """

    folders: tuple[str, ...]
    steps: tuple[Step, ...]
    cells: int
    alpha: float


@dataclass
class _Reference:
    """The cell that later ones are compared with, and where it stands."""

    cell: StoredCell
    folder: str
    gone: bool = False


@dataclass
class _Walk:
    """How far the folders have been read."""

    references: dict[str, _Reference] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def history(*results_folders: str | os.PathLike[str], alpha: float | None = None) -> History:
    """Find the steps in a series of results folders.

    Args:
        results_folders: At least two, oldest first.
        alpha: Chance of a false alarm in each folder; the first suite's unless told.

    Raises:
        InputError: Fewer than two folders, one that is named twice, or one without results.
    """
    sources = [without_trials(source) for source in open_sources(results_folders)]
    if 1 < len(sources) < len(results_folders):
        raise InputError(
            f"{len(results_folders)} results folders are named, but only {len(sources)} different ones",
            "a history has each folder once, oldest first",
        )
    if len(sources) < 2:
        raise InputError("a history has at least two results folders", "name them oldest first")
    rules = conclusions(sources[0])
    if alpha is not None:
        rules = rules.model_copy(update={"alpha": alpha})
    walk = _Walk({_key(cell): _Reference(cell, sources[0].name) for cell in sources[0].cells.values()})
    noise = noise_in(sources[0])
    for source in sources[1:]:
        rows = _rows(source, walk)
        pairs = [made for _, made in rows if isinstance(made, SamplePair)]
        found = [(m, row) for m, made in rows if isinstance(made, list) for row in made]
        by_name = {id(pair): m for m, pair in rows if isinstance(pair, SamplePair)}
        judged = quality_rows(pairs, rules, noise, strict=False)
        each = iter(judged)
        for pair in pairs:
            found += [(by_name[id(pair)], next(each)) for _ in pair.metrics]
        _note(source, walk, found)
    return History(tuple(source.name for source in sources), tuple(walk.steps), len(sources[-1].cells), rules.alpha)


def _key(cell: StoredCell) -> str:
    spec = cell.spec
    stack = [[m.method, m.knobs, m.budget] for m in spec.stack]
    system = [spec.system.kind, spec.system.ref, spec.system.replica, spec.system.dtype]
    return canonical([system, stack, spec.task.id, spec.mode, spec.protocol, spec.seed])


def _rows(source: Source, walk: _Walk) -> list[tuple[Match, list[CheckRow] | SamplePair]]:
    """A folder's cells against their references: what is said of counts, and pairs of samples to be tested."""
    standing = {reference.cell.id: key for key, reference in walk.references.items()}
    found = match([walk.references[key].cell for key in standing.values()], list(source.cells.values()))
    rows: list[tuple[Match, list[CheckRow] | SamplePair]] = []
    for m in found.matches:
        rows.append((m, list(cell_rows(m, TOLERANCE))))
        if m.candidate is not None and not m.refused:
            rows.append((m, pair_of_cells(m)))
    for cell in found.new:
        walk.references.setdefault(_key(cell), _Reference(cell, source.name))
    return rows


def _note(source: Source, walk: _Walk, found: Sequence[tuple[Match, CheckRow]]) -> None:
    """Write down the steps of a folder, and let later folders be compared with it where there is one."""
    began: dict[str, StoredCell | None] = {}
    steps: dict[tuple[str, str], list[CheckRow]] = {}
    matches: dict[str, Match] = {}
    for m, row in found:
        key = _key(m.baseline)
        if row.verdict == "failed" and m.baseline.record.outcome.status == "failed":
            continue  # as before: no step
        if row.verdict in STEPS and row.headline and not (m.candidate is None and walk.references[key].gone):
            # A changed selection changes a dozen counts of a cell: that is one step.
            steps.setdefault((key, "counts" if row.tier == "exact" else row.what), []).append(row)
            began[key], matches[key] = m.candidate, m
    for (key, what), rows in steps.items():
        reference, m = walk.references[key], matches[key]
        cell = m.candidate or next(iter(source.cells.values()), m.baseline)
        first = rows[0]
        detail = "; ".join(part for part in (first.what * (what == "counts"), difference(first), first.reason) if part)
        more = f"; and {len(rows) - 1} more" if len(rows) > 1 else ""
        verdicts = {row.verdict for row in rows}
        walk.steps.append(
            Step(
                source.name,
                reference.folder,
                cell.environment.started,
                cell.environment.commit or "",
                name_of(m.baseline),
                what,
                first.verdict if len(verdicts) == 1 else "changed",
                notation.printable(detail + more, 400),
            )
        )
    for key, candidate in began.items():
        if candidate is None:
            walk.references[key].gone = True
        elif candidate.record.outcome.status == "ok":
            walk.references[key] = _Reference(candidate, source.name)


def render(found: History, format: str) -> str:
    """A history in one of `FORMATS`.

    Raises:
        UnknownNameError: Another format.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    return FORMATS[format](found)


def text(found: History) -> str:
    """For a terminal."""
    lines = [
        f"{step.date[:10] or 'no date':<10}  {step.verdict:<9}  {step.name}{': ' + step.what if step.what else ''}  "
        f"{step.detail}  (in {step.folder}, since {step.since})"
        for step in found.steps
    ]
    count = len(found.steps)
    folders = f"{len(found.folders)} folders, {found.cells} cells in the last"
    lines.append(f"{count or 'no'} step{'' if count == 1 else 's'} in {folders}; alpha {found.alpha:g} in each")
    return "\n".join([*lines, ""])


def to_json(found: History) -> str:
    """As JSON."""
    data: dict[str, Any] = asdict(found)
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def atom(found: History) -> str:
    """As an Atom feed, one entry for each step."""
    return feed("SparseBench: what changed", list(entries(found)))


def entries(found: History) -> Iterable[Entry]:
    """Each step as an entry of a feed."""
    for step in found.steps:
        commit = f", commit {step.commit[:12]}" if step.commit else ""
        yield Entry(step.title, f"{step.detail} (in {step.folder}{commit}, since {step.since})", step.date)


FORMATS = {"text": text, "json": to_json, "atom": atom}
