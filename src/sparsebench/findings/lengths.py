"""Whether longer inputs tolerate more sparsity: the density at which a share of the dense quality is lost, by length.

For each length the curve of the relative loss over the logarithm of the realised density is read, linear between its
levels, where it reaches the loss that the rule names. The slope of that log density over the log length, by least
squares, is the factor by which the density may fall with each doubling. A length at which the loss is never reached
needs some density below the least that was tried, which counts against either conclusion.
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
from sparsebench.findings.rules import LengthTolerance, LengthUnit, Measured

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Form:
    """A task at one length: its samples, dense first, and the log2 densities of the other rows, falling."""

    length: int
    sheet: Sheet
    densities: Array
    queries: float


def answer(rule: LengthTolerance, results: Results) -> Answer:
    """Every unit must hold; a unit holds if on enough tasks the factor's upper bound is below 1."""
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    for unit in rule.units:
        # Any `required` of the tasks will do: each bound is corrected for those that may fail.
        alpha = rule.alpha / max(1, len(unit.tasks) - rule.required + 1)
        lines = [_task(rule, results, unit, name, alpha) for name in unit.tasks]
        figures += lines
        verdicts.append(of_enough(lines, rule.required))
    said = ", ".join(f"{unit.name}: {verdict}" for unit, verdict in zip(rule.units, verdicts, strict=True))
    return Answer(of_lines(verdicts), said, figures)


def _task(rule: LengthTolerance, results: Results, unit: LengthUnit, name: str, alpha: float) -> Figure:
    what = f"{unit.name}, {name}: density for each doubling of the length"
    forms = [_form(results, unit, task, length) for task, length in zip(unit.tasks[name], unit.lengths, strict=True)]
    usable = [form for form in forms if form.sheet.means[0] >= rule.usable]
    if len(usable) < 2:
        return Figure(what, math.nan, unit="x", verdict="underpowered", note="signal at fewer than two lengths")
    slopes = _coefficients([form.length for form in usable])
    resampled = Resampled([form.sheet for form in usable], rule.resamples, rule.seed)

    def factor(means: Sequence[Array], rising: float, falling: float) -> Array:
        """2 to the slope; a loss that is never reached is put so far below the least log density that was tried."""
        total = np.zeros(len(means[0]))
        for form, each, slope in zip(usable, means, slopes, strict=True):
            if slope:  # the middle one of three lengths has no part in the slope
                needed = _needed(form, each, rule.loss)
                beyond = form.densities[-1] + (rising if slope > 0 else falling)
                total += slope * np.where(np.isnan(needed), beyond, needed)
        return np.asarray(np.exp2(total))

    value = resampled.joint(lambda means: factor(means, 0.0, 0.0))
    steepest = resampled.joint(lambda means: factor(means, -np.inf, 0.0))
    flattest = resampled.joint(lambda means: factor(means, 0.0, -np.inf))
    low = min(value.bounds.lower(alpha), Percentile(steepest.draws).lower(alpha))
    high = max(value.bounds.upper(alpha), Percentile(flattest.draws).upper(alpha))
    lack = _lacking(rule, usable)
    verdict: Verdict = "underpowered"
    if not lack:
        verdict = "holds" if high < 1 else "refuted" if low > 1 else "underpowered"
    each = ", ".join(f"{f.length:,}: {_said(f, rule.loss)}" for f in usable)
    return Figure(what, value.value, low, high, "x", verdict, lack or f"density needed at {each}")


def _coefficients(lengths: Sequence[int]) -> Array:
    """What the least-squares slope over log2 length weighs each length's value with."""
    x = np.log2(np.asarray(lengths, dtype=np.float64))
    x -= x.mean()
    return np.asarray(np.where(np.abs(x) < 1e-9, 0.0, x) / (x**2).sum())


def _needed(form: _Form, means: Array, loss: float) -> Array:
    """Log2 density at which each draw's relative loss reaches `loss`; NaN where it never does."""
    sign = 1.0 if form.sheet.metric.higher_is_better else -1.0
    lost = sign * (1 - means / means[:, :1])
    return where_reached(np.concatenate([[0.0], form.densities]), lost, np.full(len(means), loss))


def _said(form: _Form, loss: float) -> str:
    needed = float(_needed(form, form.sheet.means[None], loss)[0])
    return f"below {2.0 ** form.densities[-1]:.3f}" if math.isnan(needed) else f"{2.0**needed:.3f}"


def _form(results: Results, unit: LengthUnit, task: str, length: int) -> _Form:
    rows = sorted(results.levels(unit.row, task).values(), key=lambda cells: -_density(cells))
    sheet = results.sheet(Measured(task=task), [results.dense(task), *rows])
    densities = np.log2([max(_density(cells), 1e-9) for cells in rows])
    known = [cell.record.outcome.decode_queries or 0.0 for cells in rows for cell in cells]
    return _Form(length, sheet, densities, min(known) if _in_decode(unit) else math.inf)


def _in_decode(unit: LengthUnit) -> bool:
    return bool(unit.row.knobs.get("phase") == "decode")


def _density(cells: Replicates) -> float:
    known = [cell.record.outcome.sparsity for cell in cells]
    return float(np.mean([math.nan if s is None else 1 - s for s in known]))


def _lacking(rule: LengthTolerance, usable: Sequence[_Form]) -> str:
    fewest = min(form.sheet.samples for form in usable)
    if fewest < rule.samples:
        return f"{fewest} samples of {rule.samples}"
    queries = min(form.queries for form in usable)
    return f"{queries:.0f} decode queries of {rule.decode_queries}" if queries < rule.decode_queries else ""
