"""Whether decode tolerates more sparsity than prefill: densities at which the loss is a stated number of points.

For each task and length the curve of the loss over the logarithm of the realised density is read, linear between its
levels, where it reaches the margin. A task's ratio is the geometric mean over its lengths. Where a phase never loses as
much, its density is only known to be lower than the least that was tried, which then counts against the conclusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.findings.answer import Answer, Figure, Verdict, of_enough, of_lines
from sparsebench.findings.joint import Percentile, Resampled
from sparsebench.findings.piecewise import where_reached
from sparsebench.findings.results import Replicates, Results, Sheet
from sparsebench.findings.rules import Measured, Row, Tolerance, Unit
from sparsebench.stats.bounds import Bounds

Array = npt.NDArray[np.float64]
DOUBT = 0.001
"""Level at which a loss is beyond the margin for good."""


@dataclass(frozen=True)
class _Length:
    """One form of a task: its samples, and the log densities of the rows after dense."""

    sheet: Sheet
    prefill: Array
    decode: Array
    queries: float


def answer(rule: Tolerance, results: Results) -> Answer:
    """Every unit must hold; a unit holds if enough usable tasks have a ratio whose lower bound exceeds 1."""
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    for unit in rule.units:
        lines = [_task(rule, results, unit, name, forms) for name, forms in rule.tasks.items()]
        figures += lines
        verdicts.append(of_enough(lines, rule.required))
    said = ", ".join(f"{unit.name}: {verdict}" for unit, verdict in zip(rule.units, verdicts, strict=True))
    return Answer(of_lines(verdicts), said, figures)


def _task(rule: Tolerance, results: Results, unit: Unit, name: str, forms: Sequence[str]) -> Figure:
    what = f"{unit.name}, {name}: density of prefill over that of decode"
    # The dense row alone says whether a length is read; the other rows of those that are not need not be there.
    dense = dense_values(results, forms)
    usable = [_length(results, unit, form) for form in forms if dense[form] >= rule.usable]
    if not usable:
        return Figure(what, math.nan, unit="x", verdict="underpowered", note="no signal at any length")
    resampled = Resampled([length.sheet for length in usable], rule.resamples, rule.seed)

    def ratio(means: Sequence[Array], prefill: float, decode: float) -> Array:
        logs = []
        for length, each in zip(usable, means, strict=True):
            count = 1 + len(length.prefill)
            loss = each[:, :1] - each
            sign = 1.0 if length.sheet.metric.higher_is_better else -1.0
            at = np.full(len(each), rule.margin)
            needed = [
                where_reached(np.concatenate([[0.0], places]), sign * np.column_stack([loss[:, 0], part]), at)
                for places, part in ((length.prefill, loss[:, 1:count]), (length.decode, loss[:, count:]))
            ]
            filled = (np.where(np.isnan(x), fill, x) for x, fill in zip(needed, (prefill, decode), strict=True))
            logs.append(np.subtract(*filled))
        return np.asarray(np.exp(np.mean(logs, axis=0)))

    sparsest = min(float(min(length.prefill.min(), length.decode.min())) for length in usable)
    value = resampled.joint(lambda means: ratio(means, sparsest, sparsest))
    careful = resampled.joint(lambda means: ratio(means, -np.inf, sparsest)).draws
    generous = resampled.joint(lambda means: ratio(means, sparsest, -np.inf)).draws
    low, high = _outer(value.bounds, careful, generous, rule.alpha)
    lack = _lacking(rule, usable)
    verdict: Verdict = "underpowered"
    if not lack:
        verdict = "holds" if low > 1 else "refuted" if high < 1 else "underpowered"
    return Figure(what, value.value, low, high, "x", verdict, lack or f"{len(usable)} of {len(forms)} lengths usable")


def dense_values(results: Results, forms: Sequence[str]) -> dict[str, float]:
    """What the dense model reaches on each form of a task."""
    return {form: float(results.sheet(Measured(task=form), [results.dense(form)]).means[0]) for form in forms}


def settled(rule: Tolerance, results: Results, row: Row, form: str) -> bool:
    """Whether sparser levels of a row than are there cannot matter.

    A curve counts up to where its loss first reaches the margin, and it has at one of these levels but for `DOUBT`.
    """
    sheet = results.sheet(Measured(task=form), [results.dense(form), *_rows(results, row, form)])
    sign = 1.0 if sheet.metric.higher_is_better else -1.0
    resampled = Resampled([sheet], rule.resamples, rule.seed)
    worst = resampled.joint(lambda means: np.asarray((sign * (means[0][:, :1] - means[0][:, 1:])).max(axis=1)))
    return worst.bounds.lower(DOUBT) >= rule.margin


def _outer(bounds: Bounds, careful: Array, generous: Array, alpha: float) -> tuple[float, float]:
    """The outermost bounds, with what is censored counted against either conclusion."""
    low = min(bounds.lower(alpha), Percentile(careful).lower(alpha))
    high = max(bounds.upper(alpha), Percentile(generous).upper(alpha))
    return low, high


def _length(results: Results, unit: Unit, task: str) -> _Length:
    dense = results.dense(task)
    prefill, decode = _rows(results, unit.prefill, task), _rows(results, unit.decode, task)
    sheet = results.sheet(Measured(task=task), [dense, *prefill, *decode])
    queries = min(cell.record.outcome.decode_queries or 0.0 for cells in decode for cell in cells)
    return _Length(sheet, _log_densities(prefill), _log_densities(decode), queries)


def _rows(results: Results, row: Row, task: str) -> list[Replicates]:
    """The levels of a row, from the densest down."""
    levels = list(results.levels(row, task).values())
    return sorted(levels, key=lambda cells: -_density(cells))


def _density(cells: Replicates) -> float:
    known = [cell.record.outcome.sparsity for cell in cells]
    return float(np.mean([math.nan if s is None else 1 - s for s in known]))


def _log_densities(rows: Sequence[Replicates]) -> Array:
    return np.log([max(_density(cells), 1e-9) for cells in rows])


def _lacking(rule: Tolerance, usable: Sequence[_Length]) -> str:
    fewest = min(length.sheet.samples for length in usable)
    if fewest < rule.samples:
        return f"{fewest} samples of {rule.samples}"
    queries = min(length.queries for length in usable)
    return f"{queries:.0f} decode queries of {rule.decode_queries}" if queries < rule.decode_queries else ""
