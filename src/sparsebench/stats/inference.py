"""Which method is used when: from paired samples to bounds and p values of their difference.

| samples | test against no change | interval |
| --- | --- | --- |
| right or wrong, independent | exact McNemar | score (Tango 1998), continuity-corrected |
| others | sign-flip permutation over clusters | outermost of bootstrap-t and t |
| right or wrong, in clusters | the same | outermost of bootstrap-t, t and score |
| fewer than ten clusters changed, and under half | the same | exact bound on the share of samples that changed |

Why so. With 4 to 150 clusters, where .95 is meant, the percentile bootstrap covers .79 to .95 on symmetric changes and
.70 to .95 on skewed ones (exponential and log-normal), t alone .94 to .98 and .82 to .94. The outermost of t (with
cluster sizes allowed for in its error and its degrees of freedom) and bootstrap-t covers at least .94 on symmetric,
.93 on exponential and .89 on log-normal changes. A sign-flip test alone errs in up to .22 of the cases, instead of
.05, when skewed changes average zero, so a directed p value is the larger of the test's and the interval's (its worst
is .15, with six log-normal clusters). Where few samples changed, the test stands alone and the interval is exact. The
bootstrap needs four clusters; with two or three t is used alone, with one nothing can be said, and changes that are
the same in every cluster tell of their spread only from ten clusters on.

What no method here can see is a loss confined to kinds of cluster rarer than about 3 / clusters. With 30 templates of
which some lose far more than others, a loss of just the margin is called non-inferior in .06 to .08 of the cases, not
.05; with 5 templates, and nearly all the loss in one in ten of their kind, in .34. The number of clusters is therefore
a part of every result. `benchmarks/stats_coverage.py` prints all these rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsebench.stats.bounds import Bounds, Mapped, Outermost, Score, Student, Unknown
from sparsebench.stats.clusters import Linearised, linearise
from sparsebench.stats.mcnemar import McNemar, mcnemar
from sparsebench.stats.paired import FEW_CHANGED, PairedSamples
from sparsebench.stats.resample import Bootstrap, SignFlip, bootstrap, sign_flip
from sparsebench.stats.scale import DIFFERENCE, RELATIVE, Scale, expm1, log1p

FEWEST_FOR_BOOTSTRAP = 4


@dataclass(frozen=True)
class Inference:
    """What is known of one cell's change.

    Attributes:
        absolute: Bounds of sparse less dense, in the metric's units. Of an exponential they are those of the change of
            means, at the baseline's observed value: bounds on the scale of the exponential itself, which one sample can
            govern, may contain 0 where the test on the means rejects it.
        relative: The same as a fraction of the size of dense; None where dense is 0.
        p_lower: One-sided p value against the sparse value being lower.
        p_higher: One-sided p value against the sparse value being higher.
        mcnemar: McNemar's p values, for binary samples; with clusters they are no basis for a verdict.
        lost: Samples that are right with dense and wrong with sparse; None for continuous metrics.
        gained: Samples that are wrong with dense and right with sparse.
        error: Standard error of the change of the means (before the transform).
        df: Its degrees of freedom; infinite for independent binary samples.
        unchanged: What could be said of the change of the means had no sample changed; None where that limits nothing.
        method: Names of the test and of the interval.
    """

    absolute: Bounds
    relative: Bounds | None
    p_lower: float
    p_higher: float
    mcnemar: McNemar | None
    lost: int | None
    gained: int | None
    error: float
    df: float
    unchanged: Bounds | None
    method: str


_NOTHING = Inference(
    absolute=Unknown(),
    relative=None,
    p_lower=math.nan,
    p_higher=math.nan,
    mcnemar=None,
    lost=None,
    gained=None,
    error=math.nan,
    df=math.nan,
    unchanged=None,
    method="none: no samples",
)


def infer(samples: PairedSamples, *, resamples: int, seed: int) -> list[Inference]:
    """Bounds and p values of each cell; what one cell gets does not depend on the others.

    Changes that are rounding (`PairedSamples.settled`) are none.
    """
    if not len(samples.index):
        return [_NOTHING] * samples.cells
    samples = samples.settled
    scales = (DIFFERENCE,) if samples.transform == "exp" else (DIFFERENCE, RELATIVE)
    flips: SignFlip | None = None
    resampled: list[Bootstrap] | None = None
    with np.errstate(all="ignore"):
        linear = [linearise(samples.sums, scale) for scale in scales]
        if not samples.exact and samples.clusters >= 2:
            flips = sign_flip(samples.sums, resamples=resamples, seed=seed)
            if samples.clusters >= FEWEST_FOR_BOOTSTRAP and not samples.rarely_changed.all():
                resampled = bootstrap(samples.sums, scales, resamples=resamples, seed=seed)
        results = []
        for cell in range(samples.cells):
            bounds = [
                _bounds(samples, cell, scale, linear[k], resampled[k] if resampled else None)
                for k, scale in enumerate(scales)
            ]
            results.append(_inference(samples, cell, bounds, linear[0], flips))
    return results


def _bounds(samples: PairedSamples, cell: int, scale: Scale, linear: Linearised, resampled: Bootstrap | None) -> Bounds:
    """The bounds of one cell on one scale, by the table above."""
    dense = float(samples.sums.dense_mean[cell])

    def on_scale(bounds: Bounds) -> Bounds:
        return Mapped(bounds, lambda x: scale.from_difference(x, dense), lambda x: scale.to_difference(x, dense))

    lost, gained = samples.flips(cell)
    score = on_scale(Score(gained, lost, len(samples.index))) if samples.kind == "binary" else None
    if samples.exact and score:
        return score
    if not linear.df[cell] > 0.01:
        return Unknown()
    estimate, error, df = (float(x[cell]) for x in (linear.estimate, linear.error, linear.df))
    members: list[Bounds] = [score] if score else []
    if samples.rarely_changed[cell]:
        members.append(on_scale(samples.rare(cell)))
    if error or samples.clusters >= FEW_CHANGED:
        members.append(Student(estimate, error, df))
    if error and resampled and not samples.rarely_changed[cell]:
        members.append(resampled.studentised(cell))
    return Outermost(members) if members else Unknown()


def _inference(
    samples: PairedSamples, cell: int, bounds: list[Bounds], linear: Linearised, flips: SignFlip | None
) -> Inference:
    """One cell, from the bounds of its change of means and, unless it is an exponential, of its relative change."""
    n, dense, change = len(samples.index), samples.sums.dense_mean[cell], bounds[0]
    binary, rare = samples.kind == "binary", bool(samples.rarely_changed[cell])
    lost, gained = samples.flips(cell)
    exact = mcnemar(lost, gained) if binary else None
    p_lower = p_higher = math.nan
    shift = samples.sums.sparse_mean[cell] - dense
    if math.isinf(shift):
        # No system of finite loss gives an infinite sample: seeing one rejects "no change" outright.
        p_lower, p_higher = (0.0, 1.0) if shift < 0 else (1.0, 0.0)
    elif samples.exact and exact:
        p_lower, p_higher = exact.p_lost, exact.p_gained
    elif flips is not None:
        p_lower, p_higher = float(flips.below[cell]), float(flips.above[cell])
        if not rare:
            p_lower, p_higher = max(p_lower, change.p_below(0)), max(p_higher, change.p_above(0))
    absolute, relative = change, bounds[-1] if dense != 0 else None
    if samples.transform == "exp":
        absolute = Mapped(change, lambda x: samples.from_difference(x, cell), lambda x: samples.to_difference(x, cell))
        relative = Mapped(change, expm1, log1p)
    return Inference(
        absolute=absolute,
        relative=relative,
        p_lower=p_lower,
        p_higher=p_higher,
        mcnemar=exact,
        lost=lost if binary else None,
        gained=gained if binary else None,
        error=math.sqrt(lost + gained) / n if samples.exact else float(linear.error[cell]),
        df=math.inf if samples.exact else float(linear.df[cell]),
        unchanged=samples.rare(cell, seen=False) if rare and not samples.exact else Score(0, 0, n) if binary else None,
        method=_method(samples, cell),
    )


def _method(samples: PairedSamples, cell: int) -> str:
    if samples.exact:
        return "exact McNemar; score interval"
    if samples.clusters < 2:
        return "none: one cluster"
    interval = ["t"]
    if samples.rarely_changed[cell]:
        interval.append("exact bound on the share changed")
    elif samples.clusters >= FEWEST_FOR_BOOTSTRAP:
        interval.append("bootstrap-t")
    if samples.kind == "binary":
        interval.append("score")
    unit = "samples" if samples.independent else "clusters"
    return f"sign-flip permutation over {unit}; outermost of {', '.join(interval)}"
