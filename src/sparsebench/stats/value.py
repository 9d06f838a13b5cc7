"""One system by itself: the interval of its value, and whether it is above chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.bounds import Bounds, Mapped, Outermost, Proportion, Student, Unknown
from sparsebench.stats.clusters import ClusterSums, as_table, cluster_index, linearise, same_samples, sum_by_cluster
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
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise InputError(f"the values have shape {column.shape}", "give one a sample")
    return value_bounds_many(
        column[:, None],
        weights=weights,
        clusters=clusters,
        kind=kind,
        transform=transform,
        resamples=resamples,
        seed=seed,
    )[0]


def value_bounds_many(
    values: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    resamples: int = 0,
    seed: int = 0,
) -> list[Bounds]:
    """`value_bounds` of many systems on one set of samples, all at once.

    Without resamples each gets to the last bit what it would get alone.

    Args:
        values: Numerators, `[samples, cells]`; NaN where a sample has no part in the metric.
        weights: Denominators, `[samples]` for all cells or `[samples, cells]`; None for 1 each.
        clusters: As in `value_bounds`, like the others.
        kind: Whether values are 0 or 1.
        transform: What turns the mean into the value.
        resamples: Resamples of the bootstrap; with 0, t alone.
        seed: Seed of the bootstrap.

    Raises:
        InputError: If shapes do not fit.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise InputError(f"the values have shape {table.shape}", "they should be [samples, cells]")
    n, cells = table.shape
    weight = as_table(np.ones(n) if weights is None else weights, n, cells, "the weights")
    found: dict[int, Bounds] = {}
    for members, present in same_samples(~(np.isnan(table) | np.isnan(weight))):
        index, count = cluster_index(clusters, present)
        at = np.ix_(present, members)
        sums = _sums(table[at], weight[at], index, count)
        bounds = _bounds(sums, len(index), kind, resamples, seed)
        if transform == "exp" and count:
            bounds = [Mapped(inner, exp, log) for inner in bounds]
        found.update(zip(members.tolist(), bounds, strict=True))
    return [found[cell] for cell in range(cells)]


def _bounds(sums: ClusterSums, n: int, kind: Kind, resamples: int, seed: int) -> list[Bounds]:
    """Bounds of each cell's mean, from its clusters' sums over `n` samples."""
    cells = sums.sparse.shape[1]
    if sums.clusters == 0:
        return [Unknown()] * cells
    means = sums.sparse_mean.tolist()
    if kind == "binary" and sums.clusters == n:
        return [Proportion(mean * n, n) for mean in means]
    if sums.clusters < 2:
        return [Unknown()] * cells
    linear = linearise(sums, DIFFERENCE)
    drawn = None
    if resamples and sums.clusters >= FEWEST_FOR_BOOTSTRAP:
        drawn = bootstrap(sums, [DIFFERENCE], resamples=resamples, seed=seed)[0]
    found: list[Bounds] = []
    for cell, (mean, error, df) in enumerate(zip(means, linear.error.tolist(), linear.df.tolist(), strict=True)):
        members: list[Bounds] = [Student(mean, error, df)]
        if kind == "binary":
            size = n if error > 0 else float(sums.effective_clusters[cell])
            members.append(Proportion(mean * size, size))
        if drawn and error > 0:
            members.append(drawn.studentised(cell))
        found.append(Outermost(members))
    return found


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


def _sums(values: Array, weights: Array, index: npt.NDArray[np.intp], count: int) -> ClusterSums:
    """The values, `[samples, cells]`, as pairs with nothing: the difference of the two is the value itself.

    A cell's clusters lie together in memory, so that they are added up in the same order whatever stands beside them.
    """
    if count == len(index):
        order = np.lexsort((weights, values), axis=0)
        values, weights = np.take_along_axis(values, order, 0), np.take_along_axis(weights, order, 0)
    else:
        values, weights = sum_by_cluster(values, index, count), sum_by_cluster(weights, index, count)
    sums, weight_sums = np.asfortranarray(values), np.asfortranarray(weights)
    return ClusterSums(np.zeros_like(sums), weight_sums, sums, weight_sums)
