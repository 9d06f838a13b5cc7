"""Two methods at equal levels, sample by sample and replicate by replicate: is one better, are they equivalent?

Samples (windows) and replicates (calibration sets, seeds) are crossed random factors: another set moves all windows at
once. The bounds therefore are the outermost of those over samples alone and of a t interval whose variance is the sum
of both factors'; with one replicate they hold for that replicate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.findings.answer import Answer, Figure, Verdict, of_lines
from sparsebench.findings.results import Replicates, Results, Sheet, replicate
from sparsebench.findings.rules import Contest, Equivalence, Superiority
from sparsebench.stats import holm, tost
from sparsebench.stats.bounds import Bounds, Outermost, Student
from sparsebench.stats.inference import infer
from sparsebench.stats.paired import PairedSamples
from sparsebench.store import StoredCell

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Ours less theirs at one level, on the scale of the metric's means, turned so that positive is worse.

    Attributes:
        level: The level.
        value: The difference.
        bounds: What is known of it.
        theirs: The mean of theirs.
        sheet: The samples: theirs and ours of each replicate in turn.
        pairs: Theirs and ours, by replicate.
    """

    level: float
    value: float
    bounds: Bounds
    theirs: float
    sheet: Sheet
    pairs: list[tuple[StoredCell, StoredCell]]


def superiority(rule: Superiority, results: Results) -> Answer:
    """Each level by itself, Holm over those that have not collapsed; the finding needs them all."""
    differences = differences_of(rule, results)
    collapsed = [_collapsed(rule, results, found) for found in differences]
    alive = [d for d, gone in zip(differences, collapsed, strict=True) if not gone]
    better = _adjusted([d.bounds.p_below(0) for d in alive])
    worse = _adjusted([d.bounds.p_above(0) for d in alive])
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    for found, gone in zip(differences, collapsed, strict=True):
        p = (1.0, 1.0) if gone else (better.pop(0), worse.pop(0))
        verdict, note = _level(rule, found, p) if not gone else ("collapsed", "")
        verdicts.append(verdict)
        figures.append(
            Figure.bounded(
                f"{rule.ours.label} less {rule.theirs.label} at {found.level:g}",
                found.value,
                found.bounds,
                rule.alpha,
                "nats" if found.sheet.metric.transform == "exp" else "",
                verdict,
                note or _ratios(rule, results, found),
            )
        )
    overall = of_lines(verdicts)
    said = ", ".join(f"{v} at {d.level:g}" for v, d in zip(verdicts, differences, strict=True))
    return Answer(overall, said, figures)


def equivalence(rule: Equivalence, results: Results) -> Answer:
    """TOST at each level; a difference shown to be larger than the margin, either way, refutes it."""
    differences = differences_of(rule, results)
    for found in differences:
        _check_knobs(rule, found)
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    for found in differences:
        margin = rule.margin * abs(found.theirs)
        verdict: Verdict = "underpowered"
        if tost(found.bounds, -margin, margin) <= rule.alpha:
            verdict = "holds"
        elif min(found.bounds.p_below(-margin), found.bounds.p_above(margin)) <= rule.alpha:
            verdict = "refuted"
        lack = _lacking(rule, found)
        verdict = "underpowered" if lack else verdict
        verdicts.append(verdict)
        scale = abs(found.theirs) or 1.0
        low, high = found.bounds.lower(rule.alpha) / scale, found.bounds.upper(rule.alpha) / scale
        what = f"{rule.ours.label} less {rule.theirs.label} at {found.level:g}"
        figures.append(Figure(what, found.value / scale, low, high, "%", verdict, lack))
    overall = of_lines(verdicts)
    return Answer(
        overall, f"the margin is {100 * rule.margin:g} % of {rule.theirs.label}, by two one-sided tests", figures
    )


def differences_of(rule: Contest, results: Results) -> list[Difference]:
    """The differences at all levels of a contest.

    Raises:
        InputError: A level or a replicate has no partner.
    """
    return [_difference(rule, results, level) for level in rule.levels]


def _difference(rule: Contest, results: Results, level: float) -> Difference:
    task = rule.measured.task
    ours = _by_replicate(results.at(rule.ours, task, "sparsity", level))
    theirs = _by_replicate(results.at(rule.theirs, task, "sparsity", level))
    pairs = [(theirs[b], ours[a]) for a, b in _partners(rule, ours, theirs)]
    sheet = results.sheet(rule.measured, [[cell] for pair in pairs for cell in pair])
    a, b = sheet.values[:, 1::2], sheet.values[:, 0::2]
    their_weights, our_weights = sheet.weights[:, 0::2], sheet.weights[:, 1::2]
    samples = PairedSamples(
        b.mean(1)[:, None],
        a.mean(1)[:, None],
        their_weights.mean(1)[:, None],
        our_weights.mean(1)[:, None],
        sheet.clusters.astype(np.intp),
        int(sheet.clusters.max()) + 1,
        "continuous",
        "identity",
    )
    found = infer(samples, resamples=rule.resamples, seed=rule.seed)[0]
    each = sheet.means[1::2] - sheet.means[0::2]
    value = float(each.mean())
    bounds = crossed(found.absolute, value, found.error, found.df, each)
    if sheet.metric.higher_is_better:
        value, bounds = -value, Mirrored(bounds)
    return Difference(level, value, bounds, float(sheet.means[0::2].mean()), sheet, pairs)


def crossed(over_samples: Bounds, value: float, error: float, freedom: float, each: Array) -> Bounds:
    """Bounds over samples and replicates.

    Args:
        over_samples: Bounds over samples, the replicates taken as they are.
        value: The mean difference.
        error: Its standard error over samples.
        freedom: Degrees of freedom of that.
        each: The difference in each replicate, `[replicates]`.
    """
    count = len(each)
    if count < 2 or not (math.isfinite(error) and freedom > 0):
        return over_samples
    own = float(each.std(ddof=1)) / math.sqrt(count)
    total = error**2 + own**2
    if total == 0:
        return over_samples
    spent = error**4 / freedom + own**4 / (count - 1)
    return Outermost((over_samples, Student(value, math.sqrt(total), total**2 / spent)))


@dataclass(frozen=True)
class Mirrored:
    """Bounds of the negated effect."""

    inner: Bounds

    def lower(self, alpha: float) -> float:
        """The upper bound, negated."""
        return -self.inner.upper(alpha)

    def upper(self, alpha: float) -> float:
        """The lower bound, negated."""
        return -self.inner.lower(alpha)

    def p_above(self, x: float) -> float:
        """The p value of the effect's being at least `-x`."""
        return self.inner.p_below(-x)

    def p_below(self, x: float) -> float:
        """The p value of the effect's being at most `-x`."""
        return self.inner.p_above(-x)


Key = tuple[str, int]


def _by_replicate(cells: Replicates) -> dict[Key, StoredCell]:
    return {replicate(cell): cell for cell in cells}


def _partners(rule: Contest, ours: dict[Key, StoredCell], theirs: dict[Key, StoredCell]) -> list[tuple[Key, Key]]:
    """Replicates of equal calibration and seed; a row without calibration or seed has one for all of the other's.

    Raises:
        InputError: Some have no partner.
    """
    if ours.keys() == theirs.keys():
        return [(key, key) for key in sorted(ours)]
    if len(ours) == 1 or len(theirs) == 1:
        return [(a, b) for a in sorted(ours) for b in sorted(theirs)]
    raise InputError(
        f"{rule.ours.label} and {rule.theirs.label} have other calibration sets or seeds",
        f"{len(ours.keys() & theirs.keys())} of {len(ours.keys() | theirs.keys())} are in both",
    )


def _adjusted(p: Sequence[float]) -> list[float]:
    return [float(x) for x in holm(list(p))] if p else []


def _level(rule: Superiority, found: Difference, p: tuple[float, float]) -> tuple[Verdict, str]:
    """The verdict of a level that has not collapsed, and what there is to say of it."""
    lack = _lacking(rule, found)
    if rule.matched_sparsity is not None:
        apart = abs(_sparsity([ours for _, ours in found.pairs]) - _sparsity([theirs for theirs, _ in found.pairs]))
        if not apart <= rule.matched_sparsity:
            lack = f"realised sparsities are {apart:.4f} apart, more than {rule.matched_sparsity:g}"
    if lack:
        return "underpowered", lack
    better, worse = p
    said = f"p = {better:.3g}, Holm"
    if better <= rule.alpha:
        return "holds", said
    if worse <= rule.alpha:
        return "refuted", f"worse: p = {worse:.3g}, Holm"
    if rule.equivalence is not None:
        margin = rule.equivalence * abs(found.theirs)
        same = tost(found.bounds, -margin, margin)
        if same <= rule.alpha:
            return "refuted", f"equivalent within {100 * rule.equivalence:g} %: p = {same:.3g}"
    return "underpowered", said


def _lacking(rule: Contest, found: Difference) -> str:
    """What the rule asks for and the results lack; empty where they lack nothing."""
    if len(found.pairs) < rule.replicates:
        return f"{len(found.pairs)} replicates of {rule.replicates}"
    if found.sheet.samples < rule.samples:
        return f"{found.sheet.samples} samples of {rule.samples}"
    return ""


def _sparsity(cells: Sequence[StoredCell]) -> float:
    known = [cell.record.outcome.sparsity for cell in cells]
    return float(np.mean([math.nan if s is None else s for s in known]))


def _perplexity_ratios(results: Results, rule: Superiority, found: Difference) -> tuple[float, float]:
    """The ratios of theirs and ours to dense, whose metric is the exponential of a mean."""
    dense = results.sheet(rule.measured, [results.dense(rule.measured.task)]).means[0]
    means = found.sheet.means
    return math.exp(min(float(means[0::2].mean() - dense), 700)), math.exp(min(float(means[1::2].mean() - dense), 700))


def _collapsed(rule: Superiority, results: Results, found: Difference) -> bool:
    return rule.collapse_ratio is not None and max(_perplexity_ratios(results, rule, found)) > rule.collapse_ratio


def _ratios(rule: Superiority, results: Results, found: Difference) -> str:
    theirs, ours = _perplexity_ratios(results, rule, found)
    return f"perplexities over dense {ours:.2f} and {theirs:.2f}"


def _check_knobs(rule: Equivalence, found: Difference) -> None:
    """Whether the contest is fair.

    Raises:
        InputError: A knob that must be equal is not.
    """
    for theirs, ours in found.pairs:
        for name in rule.equal_knobs:
            a, b = ours.spec.stack[0].knobs.get(name), theirs.spec.stack[0].knobs.get(name)
            if a != b:
                raise InputError(f"{name} is {a!r} of {rule.ours.label}, {b!r} of {rule.theirs.label}")
