"""Several methods on several tasks at one sparsity: whether any is best everywhere, and whether each fails somewhere.

That none is best says something of every method at once, so each must be shown to be beaten (an intersection of claims:
no correction between methods); by whom and on which task is free, so the p values of one method are corrected for all
pairs (Bonferroni). That nearly all fail is a partial conjunction: at least r of R claims are shown if R - r + 1 times
the r-th smallest p value is at most alpha (Benjamini and Heller 2008), whatever the dependence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from sparsebench.findings.answer import Answer, Figure, Verdict, of_lines
from sparsebench.findings.results import Replicates, Results, Sheet
from sparsebench.findings.rules import BreaksEarly, Group, NoneBest, OverTasks, Row
from sparsebench.stats.bounds import Bounds
from sparsebench.stats.inference import infer
from sparsebench.stats.paired import PairedSamples

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Board:
    """The rows of a group that reach the level, on its tasks that have signal.

    Attributes:
        rows: Those rows.
        sheets: For each task its samples: the dense model's, then those of the rows.
        left_out: Labels of the rows that realise another sparsity.
    """

    rows: list[Row]
    sheets: dict[str, Sheet]
    left_out: list[str]


@dataclass(frozen=True)
class _Change:
    """One row less another, or less dense, on one task."""

    task: str
    against: str
    value: float
    bounds: Bounds


Judged = tuple[Verdict, list[Figure]]


def none_best(rule: NoneBest, results: Results) -> Answer:
    """Of every group each method must be beaten; a method that is shown to be nowhere behind by the margin refutes."""
    return _over_groups(rule, results, lambda board: _beaten(rule, board))


def breaks_early(rule: BreaksEarly, results: Results) -> Answer:
    """Of every group enough methods must lose more than the margin on a task; so many that do not refute it."""
    return _over_groups(rule, results, lambda board: _broken(rule, board))


def _over_groups(rule: OverTasks, results: Results, judge: Callable[[_Board], Judged]) -> Answer:
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    said: list[str] = []
    for group in rule.groups:
        board = _board(rule, results, group)
        lack = _lacking(rule, board)
        judged: Judged = ("underpowered", [])
        if board.sheets and len(board.rows) > 1:
            judged = judge(board)
        verdict, lines = judged
        verdicts.append("underpowered" if lack else verdict)
        figures += [Figure(f"{group.name}: {f.what}", f.value, f.low, f.high, f.unit, f.verdict, f.note) for f in lines]
        left = f", without {', '.join(board.left_out)} (another sparsity)" if board.left_out else ""
        counted = f"{len(board.rows)} methods on {len(board.sheets)} of {len(group.measured)} tasks{left}"
        said.append(f"{group.name}: {lack or verdicts[-1]}, {counted}")
    return Answer(of_lines(verdicts), "; ".join(said), figures)


def _board(rule: OverTasks, results: Results, group: Group) -> _Board:
    rows: dict[str, list[Replicates]] = {}
    sheets = {}
    for measured in group.measured:
        name = " ".join(filter(None, [measured.task, measured.metric or measured.column]))
        each = [results.at(row, measured.task, "sparsity", rule.level) for row in group.rows]
        sheet = results.sheet(measured, [results.dense(measured.task), *each])
        if sheet.means[0] >= rule.usable:
            rows[name], sheets[name] = each, sheet
    off = [
        place
        for place in range(len(group.rows))
        if any(not abs(_sparsity(each[place]) - rule.level) <= rule.matched_sparsity for each in rows.values())
    ]
    kept = [place for place in range(len(group.rows)) if place not in off]
    columns = [0, *(place + 1 for place in kept)]
    cut = {name: Sheet(s.metric, s.values[:, columns], s.weights[:, columns], s.clusters) for name, s in sheets.items()}
    return _Board([group.rows[place] for place in kept], cut, [group.rows[place].label for place in off])


def _sparsity(cells: Replicates) -> float:
    known = [cell.record.outcome.sparsity for cell in cells]
    return float(np.mean([math.nan if s is None else s for s in known]))


def _lacking(rule: OverTasks, board: _Board) -> str:
    if not board.sheets:
        return "no task has signal"
    if len(board.rows) < 2:
        return "fewer than two methods reach the sparsity"
    fewest = min(sheet.samples for sheet in board.sheets.values())
    return f"{fewest} samples of {rule.samples}" if fewest < rule.samples else ""


def _beaten(rule: NoneBest, board: _Board) -> Judged:
    """Of each row the clearest defeat, corrected for all pairs; a row that is nowhere behind refutes, corrected too."""
    names = [row.label for row in board.rows]
    pairs = list(permutations(range(1, len(names) + 1), 2))
    defeats: list[list[_Change]] = [[] for _ in names]
    for task, sheet in board.sheets.items():
        found = _changes(rule, sheet, [loser for loser, _ in pairs], [winner for _, winner in pairs])
        for (loser, winner), (value, bounds) in zip(pairs, found, strict=True):
            defeats[loser - 1].append(_Change(task, names[winner - 1], value, bounds))
    figures: list[Figure] = []
    for name, each in zip(names, defeats, strict=True):
        level = rule.alpha / len(each)
        clearest = min(each, key=lambda change: change.bounds.p_above(0.0))
        behind = max(change.bounds.upper(rule.alpha / len(names)) for change in each)
        beaten = clearest.bounds.lower(level) > 0
        verdict: Verdict = "holds" if beaten else "refuted" if behind < rule.margin else "underpowered"
        what = f"{clearest.against} less {name} on {clearest.task}"
        note = "beaten" if beaten else f"nowhere shown to be beaten; behind by less than {100 * behind:.1f} points"
        figures.append(Figure.bounded(what, clearest.value, clearest.bounds, level, "points", verdict, note))
    return of_lines(figure.verdict for figure in figures if figure.verdict), figures


def _broken(rule: BreaksEarly, board: _Board) -> Judged:
    """Of each row the clearest loss, corrected for its tasks; then how many rows are shown to have one."""
    names = [row.label for row in board.rows]
    places = list(range(1, len(names) + 1))
    losses: list[list[_Change]] = [[] for _ in names]
    for task, sheet in board.sheets.items():
        for place, (value, bounds) in enumerate(_changes(rule, sheet, [0] * len(places), places)):
            losses[place].append(_Change(task, "dense", value, bounds))
    figures: list[Figure] = []
    fails: list[float] = []
    keeps: list[float] = []
    for name, each in zip(names, losses, strict=True):
        clearest = min(each, key=lambda change: change.bounds.p_below(-rule.margin))
        fails.append(min(1.0, len(each) * clearest.bounds.p_below(-rule.margin)))
        keeps.append(max(change.bounds.p_above(-rule.margin) for change in each))
        verdict: Verdict = "underpowered"
        if fails[-1] <= rule.alpha:
            verdict = "holds"
        elif keeps[-1] <= rule.alpha:
            verdict = "refuted"
        what = f"{name} less dense on {clearest.task}"
        level = rule.alpha / len(each)
        figures.append(Figure.bounded(what, clearest.value, clearest.bounds, level, "points", verdict))
    required = math.ceil(rule.share * len(names) - 1e-9)
    p = partial_conjunction(fails, required)
    against = partial_conjunction(keeps, len(names) - required + 1)
    figures.append(Figure(f"p value of at least {required} of {len(names)} methods breaking", p))
    return "holds" if p <= rule.alpha else "refuted" if against <= rule.alpha else "underpowered", figures


def partial_conjunction(p: Sequence[float], required: int) -> float:
    """The p value of the claim that at least `required` of several claims are true (Benjamini and Heller 2008).

    Args:
        p: Their p values.
        required: From 1 (any) to all.
    """
    ordered = sorted(1.0 if math.isnan(each) else each for each in p)
    return min(1.0, (len(ordered) - required + 1) * ordered[required - 1])


def _changes(rule: OverTasks, sheet: Sheet, before: list[int], after: list[int]) -> list[tuple[float, Bounds]]:
    """What columns of a sheet gain over others; positive is better, whatever the metric's direction."""
    sign = 1.0 if sheet.metric.higher_is_better else -1.0
    binary = sheet.metric.kind == "binary" and sign > 0 and bool(np.isin(sheet.values, (0.0, 1.0)).all())
    samples = PairedSamples(
        sign * sheet.values[:, before],
        sign * sheet.values[:, after],
        sheet.weights[:, before],
        sheet.weights[:, after],
        sheet.clusters.astype(np.intp),
        int(sheet.clusters.max()) + 1,
        "binary" if binary and bool((sheet.weights == 1).all()) else "continuous",
        "identity",
    )
    means = sign * sheet.means
    found = infer(samples, resamples=rule.resamples, seed=rule.seed)
    values = [float(means[b] - means[a]) for a, b in zip(before, after, strict=True)]
    return [(value, each.absolute) for value, each in zip(values, found, strict=True)]
