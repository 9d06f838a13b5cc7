"""Whether two rankings are best fused both before and after feedback, with weights that no reported query chose.

Queries are dealt into folds by the hash of their names. For each fold the weight is the one that is best on the
collection's other folds; a variant's score on a query is then the one with the weight of the query's fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparsebench.findings.answer import Answer, Figure, Verdict
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Interpolation, Measured, Row
from sparsebench.reports.sources import read_samples
from sparsebench.stats.inference import infer
from sparsebench.stats.paired import PairedSamples

Array = npt.NDArray[np.float64]


def answer(rule: Interpolation, results: Results) -> Answer:
    """Better than each of the others holds it; worse than any of them refutes it; too few queries decide nothing."""
    variants = [rule.both, *rule.alone]
    scores = [np.column_stack([_scores(rule, results, m, where) for where in variants]) for m in rule.measured]
    pooled = np.concatenate(scores)
    enough = len(scores) >= rule.collections and len(pooled) >= rule.queries
    figures = [
        Figure(f"{where}: mean over {len(pooled)} queries", float(m))
        for where, m in zip(variants, pooled.mean(0), strict=True)
    ]
    verdicts: list[Verdict] = []
    for column, where in enumerate(rule.alone, start=1):
        bounds = infer(paired(pooled[:, column], pooled[:, 0]), resamples=rule.resamples, seed=rule.seed)[0].absolute
        value = float((pooled[:, 0] - pooled[:, column]).mean())
        low, high = bounds.lower(rule.alpha), bounds.upper(rule.alpha)
        verdicts.append("holds" if low > 0 else "refuted" if high < 0 else "underpowered")
        figures.append(Figure(f"{rule.both} less {where}", value, low, high, "points", verdicts[-1]))
    verdict: Verdict = "underpowered"
    reason = (
        f"{len(scores)} collections with {len(pooled)} queries; {rule.collections} and {rule.queries} are asked for"
    )
    if enough:
        verdict = "refuted" if "refuted" in verdicts else "holds" if set(verdicts) == {"holds"} else "underpowered"
    return Answer(verdict, reason, figures)


def _scores(rule: Interpolation, results: Results, measured: Measured, where: str) -> Array:
    """A variant's score on each query, `[queries]`."""
    row = Row(method=rule.row.method, knobs={**rule.row.knobs, rule.where: where})
    cells = sorted(results.rows(row, measured.task), key=lambda cell: cell.spec.stack[0].knobs[rule.weight])
    table = results.sheet(measured, [[cell] for cell in cells]).values
    return held_out_scores(table, fold_of(read_samples(cells[0]).texts("sample"), rule.folds))


def fold_of(names: Sequence[str], folds: int) -> npt.NDArray[np.intp]:
    """The fold of each query, by the hash of its name, `[queries]`."""
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    return np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests], dtype=np.intp)


def held_out_scores(table: Array, folds: npt.NDArray[np.intp]) -> Array:
    """Each query's score with the setting that is best on the other folds.

    Args:
        table: Scores, `[queries, settings]`; of equal means the first setting is taken.
        folds: The fold of each query, `[queries]`.
    """
    found = np.empty(len(table))
    for fold in np.unique(folds):
        own = folds == fold
        others = table[~own] if (~own).any() else table
        found[own] = table[own, int(others.mean(axis=0).argmax())]
    return found


def paired(dense: Array, sparse: Array) -> PairedSamples:
    """Values of two systems on the same queries, each query by itself."""
    ones = np.ones((len(dense), 1))
    index = np.arange(len(dense), dtype=np.intp)
    return PairedSamples(dense[:, None], sparse[:, None], ones, ones, index, len(dense), "continuous", "identity")
