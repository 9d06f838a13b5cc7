"""A loss against a stated limit: shown to be below it, shown to be above it, or neither.

A verdict asks whether a loss is below a margin. A claim such as "loses at most 5 %" can also be refuted, so it needs
the other side too, and limits of any sign: "better by 3 %" is a loss of at most -3 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.clusters import cluster_index
from sparsebench.stats.inference import Inference, infer
from sparsebench.stats.paired import Kind, PairedSamples, Transform, right_or_wrong
from sparsebench.stats.power import POWER, quantile_sum

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """How large a loss is meant.

    Attributes:
        size: The loss; negative for a gain.
        kind: `relative`: as a fraction of the size of the baseline's value; `points`: in the metric's units.
    """

    size: float
    kind: Literal["relative", "points"] = "relative"


@dataclass(frozen=True)
class LossAgainst:
    """What is known of a loss and a limit, both on the limit's scale.

    Attributes:
        dense: The baseline's value.
        sparse: The other system's value.
        loss: How much worse it is; negative for a gain.
        low: Lower end of the loss's two-sided interval at confidence 1 - alpha.
        high: Upper end.
        p_below: p value of "the loss is the limit or more", against its being less.
        p_above: p value of "the loss is the limit or less", against its being more.
        n: Samples compared.
        n_clusters: Clusters that they fall into.
        unpaired: Samples that only one of the two systems has a value for.
        needed: Samples that would tell a loss of the observed size from the limit with power .8; None where no number
            would.
        method: Names of the test and of the interval.
    """

    dense: float
    sparse: float
    loss: float
    low: float
    high: float
    p_below: float
    p_above: float
    n: int
    n_clusters: int
    unpaired: int
    needed: int | None
    method: str


def loss_against(
    limit: Limit,
    dense: Array,
    sparse: Array,
    *,
    weight_dense: Array | None = None,
    weight_sparse: Array | None = None,
    clusters: npt.NDArray[np.int64] | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    higher_is_better: bool = True,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = 10_000,
) -> LossAgainst:
    """Compare one system's loss with a limit, on the same samples as its baseline.

    The arguments after `limit` are those of `compare`, all `[samples]`. Samples without a value from both are left out.

    Raises:
        InputError: The arrays do not fit together.
    """
    if dense.shape != sparse.shape or dense.ndim != 1:
        raise InputError(
            f"values of shapes {dense.shape} and {sparse.shape}", "give one value a sample from each system"
        )
    ones = np.ones_like(dense)
    weights = (ones if weight_dense is None else weight_dense, ones if weight_sparse is None else weight_sparse)
    absent = [np.isnan(dense) | np.isnan(weights[0]), np.isnan(sparse) | np.isnan(weights[1])]
    present = ~(absent[0] | absent[1])
    index, count = cluster_index(clusters, present)
    dense_values, sparse_values, dense_weight, sparse_weight = (
        values[present][:, None] for values in (dense, sparse, *weights)
    )
    if transform == "identity" and right_or_wrong((dense_values, sparse_values), (dense_weight, sparse_weight)):
        kind = "binary"  # whatever it was called, as `compare` takes it
    samples = PairedSamples(dense_values, sparse_values, dense_weight, sparse_weight, index, count, kind, transform)
    found = infer(samples, resamples=resamples, seed=seed)[0]
    values = samples.values(0)
    unit = abs(values[0]) if limit.kind == "relative" else 1.0
    sign = -1.0 if higher_is_better else 1.0
    bounds = found.relative if limit.kind == "relative" else found.absolute
    low = high = math.nan
    p_below = p_above = 1.0
    if bounds is not None:
        ends = sign * bounds.lower(alpha / 2), sign * bounds.upper(alpha / 2)
        low, high = min(ends), max(ends)
        at = sign * limit.size
        p_below, p_above = (bounds.p_above(at), bounds.p_below(at))[:: int(-sign)]
        if limit.size == 0:
            # The sharper question of any change at all has a test of its own; both must agree.
            p_below, p_above = (max(a, b) for a, b in zip((p_below, p_above), _of_change(found, sign), strict=True))
    loss = sign * (values[1] - values[0]) / unit if unit else math.nan
    return LossAgainst(
        dense=values[0],
        sparse=values[1],
        loss=loss,
        low=low,
        high=high,
        p_below=p_below,
        p_above=p_above,
        n=len(samples.index),
        n_clusters=count,
        unpaired=int((absent[0] ^ absent[1]).sum()),
        needed=_needed(samples, found, loss * unit, limit.size * unit, sign, alpha),
        method=found.method,
    )


def _of_change(found: Inference, sign: float) -> tuple[float, float]:
    """The p values against a gain's and a loss's absence."""
    lower, higher = (1.0 if math.isnan(p) else p for p in (found.p_lower, found.p_higher))
    return (higher, lower) if sign < 0 else (lower, higher)


def _needed(
    samples: PairedSamples, found: Inference, loss: float, limit: float, sign: float, alpha: float
) -> int | None:
    """Samples after which the observed loss would be told from the limit; losses in the metric's units."""
    if not math.isfinite(found.error) or not math.isfinite(loss):
        return None
    gap = abs(samples.to_difference(sign * loss, 0) - samples.to_difference(sign * limit, 0))
    if not 0 < gap < math.inf:
        return None
    n = len(samples.index)
    by_spread = n * (quantile_sum(alpha, POWER) * found.error / gap) ** 2
    floor = found.unchanged.upper(alpha) if found.unchanged else 0.0
    return math.ceil(max(by_spread, n * floor / gap if math.isfinite(floor) else 0.0))
