"""Has anything become worse? One results folder against another, and any two results against each other.

Two tiers. Counts (sparsity, FLOPs, zeros) are exact: they must be equal, unless the model itself is another. Quality is
statistical: each headline metric is compared on the same samples, all of them together corrected by Holm, so that the
chance of a false alarm in the whole check is at most alpha.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sparsebench.errors import InputError
from sparsebench.reports import notation
from sparsebench.reports.check_counts import TOLERANCE, cell_rows
from sparsebench.reports.check_quality import SamplePair, log_pairs, pair_of_cells, quality_rows
from sparsebench.reports.check_result import CheckResult, CheckRow, name_of
from sparsebench.reports.comparisons import compare_cells
from sparsebench.reports.lm_eval_files import is_log
from sparsebench.reports.matching import Match, match
from sparsebench.reports.rules import conclusions
from sparsebench.reports.sources import Source, open_sources
from sparsebench.reports.verdicts import noise_of
from sparsebench.suite import Conclude, Margin

PathLike = str | os.PathLike[str]


def check(
    baseline: PathLike,
    candidate: PathLike,
    *,
    alpha: float | None = None,
    tolerance: float = TOLERANCE,
    strict: bool = False,
) -> CheckResult:
    """Whether quality or cost of a candidate is worse than a baseline's.

    Every cell of the baseline folder must be in the candidate folder, by system, stack and task. Another model
    fingerprint is what such a check may be for, and is shown; other task, data or metric versions are refused.

    Args:
        baseline: Results folder to compare with; its suite declares margins and alpha.
        candidate: Results folder that is tested.
        alpha: Chance of a false alarm, instead of the suite's.
        tolerance: Relative difference up to which counts are equal.
        strict: Fail headline metrics that are inconclusive too: quality must be shown to be kept.

    Raises:
        InputError: A folder without results, or none of the baseline's cells in the candidate.
    """
    source, other = open_sources([baseline])[0], _other(baseline, candidate)
    rules = _rules(source, other, alpha)
    found = match(list(source.cells.values()), list(other.cells.values()))
    if not (found.matches or source.broken):
        raise InputError(f"{source.name} holds no cells to compare with", "run its suite to the end first")
    if found.matches and all(m.candidate is None for m in found.matches):
        raise InputError(f"{other.name} has none of the cells of {source.name}", "they match by model, stack and task")
    rows = [_broken_row(cell, problem) for s in (source, other) for cell, problem in sorted(s.broken.items())]
    pairs: list[SamplePair] = []
    for m in found.matches:
        rows += cell_rows(m, tolerance)
        if m.candidate is not None and not m.refused:
            made = pair_of_cells(m)
            rows += made if isinstance(made, list) else []
            pairs += [made] if isinstance(made, SamplePair) else []
    rows += [CheckRow("cells", name_of(cell), "", "new", False, "only in the candidate") for cell in found.new]
    rows += quality_rows(pairs, rules, noise_in(source), strict=strict)
    return CheckResult(rows, _notes(found.matches), rules.alpha)


def compare(a: PathLike, b: PathLike, *, alpha: float | None = None, margin: float | None = None) -> CheckResult:
    """Two results folders, or two lm-eval logs: difference, interval, flips and verdict of every metric they share.

    Args:
        a: A results folder, or a log that `lm_eval --log_samples` wrote: its folder, or one `results_*.json`.
        b: Another of the same kind. Where each has one model only, the models may differ.
        alpha: Level of the tests; the suite's, or .05.
        margin: The acceptable loss as a fraction of the value in `a`; the suite's, or .05.

    Raises:
        InputError: One is a results folder and the other a log, or they share nothing.
    """
    if is_log(a) != is_log(b):
        raise InputError(f"{a} and {b} are not of one kind", "compare two results folders, or two lm-eval logs")
    if is_log(a):
        rules, pairs, rows, notes = Conclude(), *log_pairs(a, b)
        noise: dict[tuple[str | None, str], float] = {}
    else:
        source, other = open_sources([a])[0], _other(a, b)
        rules = _rules(source, other, None)
        found = match(list(source.cells.values()), list(other.cells.values()), other_model=True)
        made = [pair_of_cells(m) for m in found.matches if m.candidate is not None and not m.refused]
        pairs = [p for p in made if isinstance(p, SamplePair)]
        rows = [row for p in made if isinstance(p, list) for row in p]
        notes, noise = _notes(found.matches), noise_in(source)
        for cell in [m.baseline for m in found.matches if m.candidate is None] + found.new:
            rows.append(CheckRow("cells", name_of(cell), "", "not compared", False, "only in one of the two"))
        rows += [row for m in found.matches if (row := _failed_row(m)) is not None]
    if not pairs and not any(row.verdict == "refused" for row in rows):
        raise InputError(f"{a} and {b} share no cell", "cells match by model, stack and task")
    update: dict[str, object] = {}
    if alpha is not None:
        update["alpha"] = alpha
    if margin is not None:
        update["margins"] = {"*": {"*": Margin(relative=margin)}}
    rules = Conclude.model_validate({**rules.model_dump(exclude_none=True), **update})
    return CheckResult(rows + quality_rows(pairs, rules, noise, strict=False), notes, rules.alpha)


def _other(baseline: PathLike, candidate: PathLike) -> Source:
    """The second folder, named so that it is told from the first; the same folder may be given twice."""
    sources = open_sources([baseline, candidate])
    return sources[-1]


def _rules(source: Source, other: Source, alpha: float | None) -> Conclude:
    rules = conclusions(source if source.suite else other)
    return rules if alpha is None else rules.model_copy(update={"alpha": alpha})


def noise_in(source: Source) -> dict[tuple[str | None, str], float]:
    """Noise of the baseline folder's own A/A rows."""
    wanted = {c.record.placement.baseline for c in source.cells.values() if c.record.placement.role == "noise"}
    kept = {k: c for k, c in source.cells.items() if k in wanted or c.record.placement.role == "noise"}
    return noise_of(compare_cells([Source(source.name, source.root, source.suite, kept)])) if kept else {}


def _failed_row(match: Match) -> CheckRow | None:
    both = [] if match.candidate is None else [("the first", match.baseline), ("the second", match.candidate)]
    failed = [(which, cell) for which, cell in both if cell.record.outcome.status == "failed"]
    if not failed:
        return None
    where = " and ".join(which for which, _ in failed)
    why = notation.printable(failed[0][1].record.outcome.error or "", 200)
    return CheckRow("cells", name_of(match.baseline), "", "not compared", False, f"failed in {where}: {why}")


def _broken_row(cell: str, problem: str) -> CheckRow:
    return CheckRow("cells", cell, "", "failed", True, notation.printable(problem, 300))


def _notes(matches: Sequence[Match]) -> list[str]:
    counts: dict[str, int] = {}
    for m in matches:
        for difference in m.differs:
            counts[difference] = counts.get(difference, 0) + 1
    return [f"other {notation.printable(d, 160)}, in {n} cell{'s' if n > 1 else ''}" for d, n in sorted(counts.items())]
