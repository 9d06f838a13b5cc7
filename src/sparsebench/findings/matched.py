"""A pattern against unstructured sparsity of the same method, at the perplexity that the pattern itself has.

At equal sparsity a pattern has the higher perplexity, and everything falls with it; so that is no comparison. Here the
unstructured curve of accuracy over perplexity is read, linear between its levels, where its mean negative
log-likelihood is the pattern's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparsebench.findings.answer import Answer, Figure, Verdict
from sparsebench.findings.joint import Joint, Resampled
from sparsebench.findings.piecewise import read_at, where_reached
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Matched

Array = npt.NDArray[np.float64]


def answer(rule: Matched, results: Results) -> Answer:
    """Collapsed, where the unstructured model has less accuracy left than the effect that is asked for."""
    levels = results.levels(rule.method, rule.perplexity.task)
    known = results.levels(rule.method, rule.knowledge.task)
    shared = [level for level in levels if level in known]
    places = np.array([0.0, *shared])
    sheets = []
    for measured, curve in ((rule.perplexity, levels), (rule.knowledge, known)):
        pattern = results.at(rule.method, measured.task, "pattern", rule.pattern)
        rows = [pattern, results.dense(measured.task), *(curve[level] for level in shared)]
        sheets.append(results.sheet(measured, rows))
    resampled = Resampled(sheets, rule.resamples, rule.seed)

    def sparsity(means: Sequence[Array]) -> Array:
        return where_reached(places, means[0][:, 1:], means[0][:, 0])

    def unstructured(means: Sequence[Array]) -> Array:
        return read_at(places, means[1][:, 1:], sparsity(means))

    matched = resampled.joint(unstructured)
    difference = resampled.joint(lambda means: means[1][:, 0] - unstructured(means))
    verdict, reason = _verdict(rule, matched, difference)
    nll, accuracy = sheets[0].means, sheets[1].means
    level, alpha = resampled.joint(sparsity), rule.alpha
    name = f"{rule.method.label} {rule.pattern}"
    return Answer(
        verdict,
        reason,
        [
            Figure(f"perplexity of {name} over dense", math.exp(nll[0] - nll[1]), unit="x"),
            Figure.bounded("unstructured sparsity of that perplexity", level.value, level.bounds, alpha),
            Figure("accuracy, dense", accuracy[1]),
            Figure(f"accuracy, {name}", accuracy[0]),
            Figure.bounded("accuracy, unstructured at that perplexity", matched.value, matched.bounds, alpha),
            Figure.bounded(
                f"{rule.pattern} less unstructured", difference.value, difference.bounds, alpha, unit="points"
            ),
        ],
    )


def _verdict(rule: Matched, matched: Joint, difference: Joint) -> tuple[Verdict, str]:
    points = f"{100 * rule.effect:g} points"
    if math.isnan(matched.value):
        return (
            "underpowered",
            f"no unstructured level has as high a perplexity as {rule.pattern}: sparser ones are needed",
        )
    if matched.bounds.upper(rule.alpha) < rule.effect:
        return "collapsed", f"at that perplexity unstructured sparsity has less than {points} left to lose"
    if difference.bounds.upper(rule.alpha) < -rule.effect:
        return "holds", f"the upper bound of the difference is below -{points}"
    if difference.bounds.lower(rule.alpha) > -rule.effect:
        return "refuted", f"the lower bound of the difference is above -{points}"
    return "underpowered", f"the bounds of the difference stand on both sides of -{points}"
