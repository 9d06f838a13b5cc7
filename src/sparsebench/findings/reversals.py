"""Whether the sum of layer errors ranks allocations of sparsity: pairs in the wrong order, found and then confirmed.

Pairs are looked for on every other cluster of the samples, and tested on the rest: among thousands of pairs some are
in the wrong order by chance, and those are not confirmed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from sparsebench.errors import InputError
from sparsebench.findings.answer import Answer, Figure, Verdict
from sparsebench.findings.joint import Sums
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Reversals
from sparsebench.stats import holm

Array = npt.NDArray[np.float64]
Pairs = list[tuple[int, int]]


def answer(rule: Reversals, results: Results) -> Answer:
    """A confirmed pair shows that layer errors do not rank; none found, where most are shown in order, refutes that."""
    cells = results.rows(rule.row, rule.measured.task)
    errors = np.array([_error(cell.record.outcome.facts.get(rule.fact)) for cell in cells])
    if np.isnan(errors).any():
        raise InputError(f"a cell of {rule.row.label} has no {rule.fact!r}", "it was stored without the layer errors")
    sheet = results.sheet(rule.measured, [[cell] for cell in cells])
    sums = Sums.of(sheet)
    if sheet.metric.higher_is_better:
        sums = Sums(-sums.numerator, sums.weight)
    halves = [Sums(sums.numerator[k::2], sums.weight[k::2]) for k in (0, 1)]
    losses = sums.means[0]
    tau = float(stats.kendalltau(errors, losses).statistic)
    found = reversed_pairs(errors, halves[0], rule)
    p = holm([_p(halves[1], a, b) for a, b in found]) if found else np.zeros(0)
    confirmed = int((p <= rule.alpha).sum())
    candidates = _candidates(errors, rule.apart)
    ordered = sum(_p(halves[0], b, a) <= rule.alpha for a, b in candidates) / max(1, len(candidates))
    figures = [
        Figure("allocations", len(cells)),
        Figure("Kendall's tau of layer errors and losses", tau),
        Figure("pairs whose layer errors differ enough", len(candidates)),
        Figure("share of them that one half shows in the right order", ordered),
        Figure("reversals found on one half", len(found), note=f"at most {rule.pairs} are taken"),
        Figure("confirmed on the other half", confirmed, note="Holm"),
    ]
    return Answer(*_verdict(rule, len(cells), len(found), confirmed, ordered), figures)


def _verdict(rule: Reversals, cells: int, found: int, confirmed: int, ordered: float) -> tuple[Verdict, str]:
    if confirmed:
        return "holds", f"{confirmed} pairs have less layer error and more loss, on both halves"
    if cells < rule.allocations:
        return "underpowered", f"{cells} allocations of {rule.allocations}"
    if found:
        return "underpowered", "pairs in the wrong order were found on one half and not confirmed on the other"
    if ordered < rule.ordered:
        return "underpowered", "no pair was found in the wrong order, and too few are shown in the right one"
    return "refuted", "no pair is in the wrong order on one half, and most are shown in the right one"


def reversed_pairs(errors: Array, half: Sums, rule: Reversals) -> Pairs:
    """Pairs `(a, b)` where `a` has less layer error and, by a one-sided test, more loss; the clearest first."""
    tested = sorted((_p(half, a, b), a, b) for a, b in _candidates(errors, rule.apart))
    return [(a, b) for p, a, b in tested if p <= rule.alpha][: rule.pairs]


def _candidates(errors: Array, least: float) -> Pairs:
    """Pairs of which the first has less layer error, by more than the least relative difference."""
    places = range(len(errors))
    return [(a, b) for a in places for b in places if errors[b] > errors[a] * (1 + least)]


def _p(half: Sums, a: int, b: int) -> float:
    """The p value of "`a` loses no more than `b`", by a t test over clusters."""
    weight = half.weight[:, a]
    change = (half.numerator[:, a] - half.numerator[:, b]) / weight.mean()
    error = float(change.std(ddof=1)) / math.sqrt(len(change)) if len(change) > 1 else math.inf
    if not error > 0:
        return 0.0 if change.mean() > 0 and len(change) > 1 else 1.0
    return float(special.stdtr(len(change) - 1, -float(change.mean()) / error))


def _error(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
