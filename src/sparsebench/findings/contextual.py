"""Whether contextual sparsity drifts from the dense model as its text grows, and whether correction recovers it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparsebench.findings.answer import Answer, Figure, Verdict, of_lines
from sparsebench.findings.joint import Resampled
from sparsebench.findings.results import Replicates, Results
from sparsebench.findings.rules import Contextual, Row

Array = npt.NDArray[np.float64]


def answer(rule: Contextual, results: Results) -> Answer:
    """Both parts must hold of every method: the gap, and its recovery at less than the stated density."""
    figures = [_gap(rule, results, row) for row in rule.sparse]
    for sparse, corrected in zip(rule.sparse, rule.corrected, strict=True):
        figures.append(_recovery(rule, results, sparse, corrected))
    verdicts = [figure.verdict for figure in figures if figure.verdict is not None]
    overall = of_lines(verdicts)
    return Answer(overall, "; ".join(f"{f.what.partition(' (')[0]}: {f.verdict}" for f in figures), figures)


def _gap(rule: Contextual, results: Results, row: Row) -> Figure:
    task = rule.early.task
    cells = results.at(row, task, "sparsity", rule.level)
    sheets = [results.sheet(measured, [cells]) for measured in (rule.early, rule.late)]
    # Early and late tokens are of the same texts: one set of samples with two columns.
    early, late = sheets
    joined = type(early)(
        early.metric,
        np.column_stack([early.values, late.values]),
        np.column_stack([early.weights, late.weights]),
        early.clusters,
    )
    found = Resampled([joined], rule.resamples, rule.seed).joint(lambda means: means[0][:, 1] - means[0][:, 0])
    low, high = found.bounds.lower(rule.alpha), found.bounds.upper(rule.alpha)
    verdict: Verdict = "holds" if low > 0 else "refuted" if high < 0 else "underpowered"
    lack = f"{joined.samples} texts of {rule.samples}" if joined.samples < rule.samples else ""
    what = f"{row.label} at {rule.level:g}: late less early (KL to dense)"
    note = lack or f"early {joined.means[0]:.4f}, late {joined.means[1]:.4f} nats a token"
    return Figure(what, found.value, low, high, "nats", "underpowered" if lack else verdict, note)


def _recovery(rule: Contextual, results: Results, sparse: Row, corrected: Row) -> Figure:
    task = rule.unlikely.task
    rows = [results.dense(task), *(results.at(row, task, "sparsity", rule.level) for row in (sparse, corrected))]
    sheet = results.sheet(rule.unlikely, rows)

    def recovered(means: Sequence[Array]) -> Array:
        dense, without, with_it = means[0].T
        lost = without - dense
        return np.where(lost > 0, (without - with_it) / np.where(lost > 0, lost, 1), np.nan)

    found = Resampled([sheet], rule.resamples, rule.seed).joint(recovered)
    low, high = found.bounds.lower(rule.alpha), found.bounds.upper(rule.alpha)
    density = effective_density(rows[2])
    verdict: Verdict = "holds" if low >= rule.recovery else "refuted" if high < rule.recovery else "underpowered"
    if verdict == "holds" and not density < rule.density:
        verdict = "refuted"
    lack = f"{sheet.samples} texts of {rule.samples}" if sheet.samples < rule.samples else ""
    said = ", ".join(f"{mean:.3f}" for mean in sheet.means)
    note = f"dense, sparse and corrected {said} nats; effective density {density:.3f}, to be below {rule.density:g}"
    what = f"{corrected.label} at {rule.level:g}: share recovered (of what dense holds for more unlikely)"
    return Figure(what, found.value, low, high, "", "underpowered" if lack else verdict, lack or note)


def effective_density(cells: Replicates) -> float:
    """Weights read for a token in all passes together, over what the dense model reads."""
    known = [cell.record.outcome.densities.get("effective density in decode", math.nan) for cell in cells]
    return float(np.mean(known))
