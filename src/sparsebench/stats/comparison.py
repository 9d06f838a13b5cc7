"""What a paired comparison found: one cell's numbers, put together, with its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsebench.errors import InputError
from sparsebench.stats.bounds import Bounds, tost
from sparsebench.stats.inference import Inference
from sparsebench.stats.paired import Kind, PairedSamples, Transform
from sparsebench.stats.power import POWER, mde_from_error, quantile_sum
from sparsebench.stats.value import signal
from sparsebench.stats.verdict import Evidence, Verdict, decide


@dataclass(frozen=True)
class Margin:
    """The loss that a suite declares acceptable, before anything is run.

    Attributes:
        size: How large; positive.
        kind: `points`: in the metric's units (0.01 is a point of accuracy); `relative`: as a fraction of the baseline's
            value (0.01 is one per cent; a perplexity ratio of 1.01).
    """

    size: float
    kind: Literal["points", "relative"] = "points"

    def __post_init__(self) -> None:
        if not 0 < self.size < math.inf:
            raise InputError(f"a margin of {self.size}", "it should be positive: 0.01 is a point, or one per cent")

    def absolute(self, dense: float) -> float:
        """The margin in the metric's units, for a baseline's value."""
        return self.size if self.kind == "points" else self.size * abs(dense)


@dataclass(frozen=True)
class Comparison:
    """What a paired comparison found. NaN and None stand for "not known".

    Attributes:
        dense: The baseline's value.
        sparse: The sparse system's value.
        delta: `sparse - dense`, in the metric's units.
        delta_low: Lower end of its two-sided interval at `confidence`.
        delta_high: Upper end.
        relative: `delta / abs(dense)`; for a perplexity, the ratio less one.
        relative_low: Lower end of its interval.
        relative_high: Upper end.
        confidence: Of the two intervals: `1 - alpha`.
        loss_bound: The one-sided upper bound of the loss at confidence `1 - alpha`, in the metric's units: the verdict
            `non-inferior` compares it with `margin`. Negative where even the bound is a gain.
        p: Two-sided p value of "no change".
        p_regression: One-sided, against a loss.
        p_improvement: One-sided, against a gain.
        p_noninferior: One-sided p value of "worse by the margin or more"; NaN without a margin.
        mid_p: McNemar's two-sided mid-p, for binary metrics; not used for verdicts.
        n: Samples compared.
        n_clusters: Clusters that they fall into.
        unpaired: Samples that only one of the two systems has a value for; they are left out.
        lost: Right with dense and wrong with sparse, for binary metrics.
        gained: Wrong with dense and right with sparse.
        discordance: `(lost + gained) / n`.
        mde: The smallest loss that these samples show with power .8 at `alpha`, in the metric's units; also the
            smallest margin that they could have confirmed.
        required_n: Samples for which `mde` would be the margin.
        margin: In the metric's units.
        equivalent: Whether the change is within the margin on both sides (TOST at `alpha`).
        method: Names of the test and of the interval.
        verdict: `improved`, `non-inferior`, `regressed` or `inconclusive`.
        reason: Why, in a sentence.
    """

    dense: float
    sparse: float
    delta: float
    delta_low: float
    delta_high: float
    relative: float
    relative_low: float
    relative_high: float
    confidence: float
    loss_bound: float
    p: float
    p_regression: float
    p_improvement: float
    p_noninferior: float
    mid_p: float | None
    n: int
    n_clusters: int
    unpaired: int
    lost: int | None
    gained: int | None
    discordance: float | None
    mde: float
    required_n: int | None
    margin: float | None
    equivalent: bool
    method: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Question:
    """What is asked of every cell; the fields are the arguments of `compare_many`."""

    kind: Kind
    transform: Transform
    higher_is_better: bool
    margin: Margin | None
    alpha: float
    noise: float | None
    chance: float | None


def conclude(question: Question, samples: PairedSamples, cell: int, found: Inference, unpaired: int) -> Comparison:
    """Put one cell's numbers together and decide."""
    dense, sparse = samples.values(cell)
    n, alpha, higher = len(samples.index), question.alpha, question.higher_is_better
    margin = question.margin.absolute(dense) if question.margin and n else None
    loss = dense - sparse if higher else sparse - dense
    loss_bound, p_noninferior, equivalent = _against_margin(question, found, dense)
    p_regression, p_improvement = (found.p_lower, found.p_higher) if higher else (found.p_higher, found.p_lower)
    mde, required_n = _power(question, samples, cell, found, margin)
    above_chance, room = _signal(question, samples, cell, margin)
    verdict, reason = decide(
        Evidence(
            n=n,
            clusters=samples.clusters,
            unpaired=unpaired,
            finite=math.isfinite(dense) and math.isfinite(sparse),
            loss=loss,
            loss_bound=loss_bound,
            p_regression=p_regression,
            p_improvement=p_improvement,
            alpha=alpha,
            margin=margin,
            mde=mde,
            required_n=required_n,
            noise=question.noise,
            above_chance=above_chance,
            room=room,
        )
    )
    delta_low, delta_high = _interval(found.absolute, alpha)
    relative_low, relative_high = _interval(found.relative, alpha) if found.relative else (math.nan, math.nan)
    return Comparison(
        dense=dense,
        sparse=sparse,
        delta=sparse - dense,
        delta_low=delta_low,
        delta_high=delta_high,
        relative=(sparse - dense) / abs(dense) if dense else math.nan,
        relative_low=relative_low,
        relative_high=relative_high,
        confidence=1 - alpha,
        loss_bound=loss_bound,
        p=min(1.0, 2 * min(p_regression, p_improvement)) if not math.isnan(p_regression) else math.nan,
        p_regression=p_regression,
        p_improvement=p_improvement,
        p_noninferior=p_noninferior,
        mid_p=found.mcnemar.mid_p if found.mcnemar else None,
        n=n,
        n_clusters=samples.clusters,
        unpaired=unpaired,
        lost=found.lost,
        gained=found.gained,
        discordance=(found.lost + found.gained) / n if found.lost is not None and found.gained is not None else None,
        mde=mde,
        required_n=required_n,
        margin=margin,
        equivalent=equivalent,
        method=found.method,
        verdict=verdict,
        reason=reason,
    )


def _interval(bounds: Bounds, alpha: float) -> tuple[float, float]:
    """The two-sided interval at confidence `1 - alpha`; NaN where a side is unbounded."""
    low, high = bounds.lower(alpha / 2), bounds.upper(alpha / 2)
    return (low if math.isfinite(low) else math.nan), (high if math.isfinite(high) else math.nan)


def _against_margin(question: Question, found: Inference, dense: float) -> tuple[float, float, bool]:
    """The bound of the loss in the metric's units, the p value of non-inferiority, and whether equivalence is shown."""
    relative = question.margin is not None and question.margin.kind == "relative"
    bounds, unit = (found.relative, abs(dense)) if relative else (found.absolute, 1.0)
    if bounds is None:
        return math.inf, 1.0, False
    bound = -bounds.lower(question.alpha) if question.higher_is_better else bounds.upper(question.alpha)
    if question.margin is None:
        return bound * unit, math.nan, False
    size = question.margin.size
    p = bounds.p_above(-size) if question.higher_is_better else bounds.p_below(size)
    return bound * unit, p, tost(bounds, -size, size) <= question.alpha


def _power(
    question: Question, samples: PairedSamples, cell: int, found: Inference, margin: float | None
) -> tuple[float, int | None]:
    """The minimum detectable effect in the metric's units, and the samples that would bring it down to the margin.

    Where few samples changed, their spread promises too much: the effect is then no smaller than what could have been
    excluded had none of them changed, and that shrinks with n, not with its square root.
    """
    if math.isnan(found.error):
        return math.nan, None
    n = len(samples.index)
    spread = mde_from_error(found.error, df=found.df, alpha=question.alpha, power=POWER)
    floor = found.unchanged.upper(question.alpha) if found.unchanged else 0.0
    mde = samples.from_difference(max(spread, floor), cell)
    if not margin:
        return mde, None
    target = samples.to_difference(margin, cell)
    by_spread = n * (quantile_sum(question.alpha, POWER) * found.error / target) ** 2
    needed = max(by_spread, n * floor / target)
    return mde, math.ceil(needed) if math.isfinite(needed) else None


def _signal(question: Question, samples: PairedSamples, cell: int, margin: float | None) -> tuple[bool | None, bool]:
    """Whether the baseline is above chance, and whether it is so by more than the margin."""
    if question.chance is None or not len(samples.index):
        return None, True

    def above(level: float) -> bool:
        return signal(
            samples.dense[:, cell],
            level,
            question.alpha,
            weights=samples.dense_weight[:, cell],
            clusters=samples.index,
            kind=question.kind,
            transform=question.transform,
            higher_is_better=question.higher_is_better,
        ).present

    towards_baseline = (margin or 0.0) if question.higher_is_better else -(margin or 0.0)
    return above(question.chance), above(question.chance + towards_baseline)
