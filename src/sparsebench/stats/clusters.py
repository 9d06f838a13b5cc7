"""From samples to clusters: the sums that every paired statistic of this package is a function of.

A metric's value is `transform(sum(numerator) / sum(weight))`. Samples of one cluster (the questions of a template, the
windows of a document) are not independent of each other, so the cluster is what is resampled, and nothing below it is
needed: `ClusterSums` holds the four sums of each cluster for any number of cells that share their samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.scale import Scale

Array = npt.NDArray[np.float64]

_CELLS_AT_ONCE = 256
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ClusterSums:
    """Sums over the samples of each cluster, for both members of each pair; all arrays are `[clusters, cells]`.

    Attributes:
        dense: Sum of the baseline's numerators.
        dense_weight: Sum of the baseline's weights (the number of samples, where a sample counts one).
        sparse: Sum of the sparse system's numerators.
        sparse_weight: Sum of the sparse system's weights.
    """

    dense: Array
    dense_weight: Array
    sparse: Array
    sparse_weight: Array

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.dense)

    @cached_property
    def dense_mean(self) -> Array:
        """The baseline's `sum(numerator) / sum(weight)`, `[cells]`."""
        return np.asarray(self.dense.sum(0) / self.dense_weight.sum(0))

    @cached_property
    def sparse_mean(self) -> Array:
        """The sparse system's `sum(numerator) / sum(weight)`, `[cells]`."""
        return np.asarray(self.sparse.sum(0) / self.sparse_weight.sum(0))

    @cached_property
    def dense_residual(self) -> Array:
        """What each cluster adds to the baseline's sum beyond its share, `[clusters, cells]`."""
        return self.dense - self.dense_mean * self.dense_weight

    @cached_property
    def residual_change(self) -> Array:
        """The sparse system's residual less the baseline's, `[clusters, cells]`."""
        return self.sparse - self.sparse_mean * self.sparse_weight - self.dense_residual

    @cached_property
    def share(self) -> Array:
        """Each cluster's share of the weight, the mean of the two systems', `[clusters, cells]`."""
        shares = self.dense_weight / self.dense_weight.sum(0) + self.sparse_weight / self.sparse_weight.sum(0)
        return np.asarray(shares / 2)

    @cached_property
    def effective_clusters(self) -> Array:
        """Kish's effective number, `1 / sum(share ** 2)`: below `clusters` where sizes differ, `[cells]`."""
        return np.asarray(1 / (self.share**2).sum(0))


def as_table(values: npt.ArrayLike, samples: int, cells: int, what: str) -> Array:
    """`values` as `[samples, cells]`; one column stands for all cells.

    Raises:
        InputError: If the shape does not fit.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[0] != samples or table.shape[1] not in (1, cells):
        raise InputError(f"{what} has shape {np.shape(values)}", f"it should be ({samples},) or ({samples}, {cells})")
    return np.broadcast_to(table, (samples, cells))


def same_samples(present: npt.NDArray[np.bool_]) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]]:
    """Cells that have the same samples, `_CELLS_AT_ONCE` at most: their numbers, and which samples these are.

    Args:
        present: Which samples each cell has, `[samples, cells]`.
    """
    patterns: dict[bytes, list[int]] = {}
    for cell, column in enumerate(np.ascontiguousarray(present.T)):
        patterns.setdefault(column.tobytes(), []).append(cell)
    for cells in patterns.values():
        for start in range(0, len(cells), _CELLS_AT_ONCE):
            yield np.array(cells[start : start + _CELLS_AT_ONCE]), present[:, cells[0]]


def cluster_index(clusters: npt.ArrayLike | None, present: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], int]:
    """The number of the cluster of each sample that is present, `[present samples]`, and how many clusters these are.

    Clusters are numbered by their sorted labels, so that the order of the rows has no part in any result.

    Args:
        clusters: One label for each sample, present or not, `[samples]`; None makes each a cluster of its own.
        present: Which samples take part, `[samples]`.

    Raises:
        InputError: If the labels do not fit the samples.
    """
    if clusters is None:
        count = int(present.sum())
        return np.arange(count), count
    labels = np.asarray(clusters)
    if labels.shape != present.shape:
        raise InputError(f"{len(present)} samples have cluster labels of shape {labels.shape}", "give one a sample")
    labels = labels[present]
    if labels.dtype.kind in "iu" and len(labels) and 0 <= labels.min() and labels.max() < 4 * len(present):
        # Numbers already: no sorting. A report of many cells asks this of each of them.
        there = np.bincount(labels) > 0
        number = np.cumsum(there) - 1
        return number[labels].astype(np.intp), int(number[-1]) + 1
    unique, index = np.unique(labels, return_inverse=True)
    return index.astype(np.intp), len(unique)


def sum_by_cluster(table: Array, index: npt.NDArray[np.intp], count: int) -> Array:
    """Column sums of `table` `[samples, cells]` within each cluster, `[clusters, cells]`."""
    if count == len(index):
        ordered = np.empty_like(table)
        ordered[index] = table
        return ordered
    return np.stack([np.bincount(index, column, minlength=count) for column in table.T], axis=1)


@dataclass(frozen=True)
class Linearised:
    """A paired effect and its cluster-robust standard error; all arrays are `[cells]`.

    Attributes:
        estimate: The effect.
        error: Its standard error; 0 where it is nothing but rounding.
        df: Degrees of freedom for a t interval: the effective number of clusters less one.
    """

    estimate: Array
    error: Array
    df: Array


def linearise(sums: ClusterSums, scale: Scale) -> Linearised:
    """The effect on `scale` with its delta-method standard error over clusters.

    Each cluster's residual is divided by `sqrt(1 - share)`, because a cluster pulls the mean towards itself in
    proportion to its share (the CR2 correction of Bell and McCaffrey 2002, for a mean); with equal clusters that is the
    usual factor C / (C - 1). The degrees of freedom follow Kish's effective number, so one dominant cluster widens
    the interval as it should.
    """
    by_sparse, by_dense = scale.gradient(sums.sparse_mean, sums.dense_mean)
    by_sparse, by_dense = by_sparse / sums.sparse_weight.sum(0), by_dense / sums.dense_weight.sum(0)
    scores = by_sparse * sums.residual_change + (by_sparse + by_dense) * sums.dense_residual
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (scores**2 / (1 - sums.share)).sum(0)
    size = np.abs(by_sparse * sums.sparse.sum(0)) + np.abs(by_dense * sums.dense.sum(0))
    error = np.sqrt(variance)
    return Linearised(
        estimate=scale.estimate(sums.sparse_mean, sums.dense_mean),
        error=np.where(error > _ROUNDING * size, error, 0.0),
        df=sums.effective_clusters - 1,
    )
