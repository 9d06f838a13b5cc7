"""One system by itself: the interval of its value, and whether it is above chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.bounds import Bounds, Mapped, Outermost, Proportion, Student, Unknown
from sparsebench.stats.clusters import ClusterSums, cluster_index, linearise, sum_by_cluster
from sparsebench.stats.inference import FEWEST_FOR_BOOTSTRAP
from sparsebench.stats.paired import Kind, Transform
from sparsebench.stats.resample import bootstrap
from sparsebench.stats.scale import DIFFERENCE, exp, log

Array = npt.NDArray[np.float64]


def value_bounds(
    values: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    resamples: int = 0,
    seed: int = 0,
) -> Bounds:
    """Bounds of a metric's value, `transform(sum(values) / sum(weights))`.

    Independent right-or-wrong samples have exact binomial bounds; others the outermost of t and bootstrap-t over
    clusters, and with right-or-wrong samples of the binomial too, at the number of clusters where no cluster differs.

    Args:
        values: Numerators, `[samples]`; NaN where a sample has no part in the metric.
        weights: Denominators, `[samples]`; None for 1 each.
        clusters: Cluster labels, `[samples]`; None for independent samples.
        kind: Whether values are 0 or 1.
        transform: What turns the mean into the value.
        resamples: Resamples of the bootstrap; with 0, t alone.
        seed: Seed of the bootstrap.

    Raises:
        InputError: If shapes do not fit.
    """
    sums, n = _sums(values, weights, clusters)
    if sums.clusters == 0:
        return Unknown()
    mean, independent = float(sums.sparse_mean[0]), sums.clusters == n
    if kind == "binary" and independent:
        inner: Bounds = Proportion(mean * n, n)
    elif sums.clusters < 2:
        inner = Unknown()
    else:
        linear = linearise(sums, DIFFERENCE)
        members: list[Bounds] = [Student(mean, float(linear.error[0]), float(linear.df[0]))]
        if kind == "binary":
            size = n if linear.error[0] > 0 else float(sums.effective_clusters[0])
            members.append(Proportion(mean * size, size))
        if resamples and sums.clusters >= FEWEST_FOR_BOOTSTRAP and linear.error[0] > 0:
            members.append(bootstrap(sums, [DIFFERENCE], resamples=resamples, seed=seed)[0].studentised(0))
        inner = Outermost(members)
    return Mapped(inner, exp, log) if transform == "exp" else inner


@dataclass(frozen=True)
class Signal:
    """Whether a baseline shows that it can do the task.

    Attributes:
        present: Whether it is better than chance at the level asked for.
        p: One-sided p value of "no better than chance".
        chance: What guessing reaches.
    """

    present: bool
    p: float
    chance: float


def signal(
    values: npt.ArrayLike,
    chance: float,
    alpha: float = 0.05,
    *,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    higher_is_better: bool = True,
) -> Signal:
    """One-sided test that a baseline is better than chance.

    Exact binomial for independent right-or-wrong samples, t over clusters otherwise. A task without signal takes no
    part in means, verdicts or ranks.

    Args:
        values: The baseline's numerators, `[samples]`.
        chance: What guessing reaches, on the scale of the metric's value.
        alpha: Level of the test.
        weights: Denominators, `[samples]`; None for 1 each.
        clusters: Cluster labels, `[samples]`; None for independent samples.
        kind: Whether values are 0 or 1.
        transform: What turns the mean into the value.
        higher_is_better: Which side of chance is the good one.
    """
    bounds = value_bounds(values, weights=weights, clusters=clusters, kind=kind, transform=transform)
    p = bounds.p_above(chance) if higher_is_better else bounds.p_below(chance)
    return Signal(present=p <= alpha, p=p, chance=chance)


def _sums(
    values: npt.ArrayLike, weights: npt.ArrayLike | None, clusters: npt.ArrayLike | None
) -> tuple[ClusterSums, int]:
    """The values as a pair with nothing: the difference of the two is the value itself."""
    numerator = np.asarray(values, dtype=np.float64)
    denominator = np.ones_like(numerator) if weights is None else np.asarray(weights, dtype=np.float64)
    if numerator.ndim != 1 or denominator.shape != numerator.shape:
        raise InputError(
            f"values of shape {numerator.shape} with weights of shape {denominator.shape}", "give one each"
        )
    present = ~(np.isnan(numerator) | np.isnan(denominator))
    index, count = cluster_index(clusters, present)
    table, weight = numerator[present][:, None], denominator[present][:, None]
    if count == len(index):
        order = np.lexsort((weight[:, 0], table[:, 0]))
        table, weight = table[order], weight[order]
        index = np.arange(count)
    sums, weight_sums = sum_by_cluster(table, index, count), sum_by_cluster(weight, index, count)
    return ClusterSums(np.zeros_like(sums), weight_sums, sums, weight_sums), len(index)
