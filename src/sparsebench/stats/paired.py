"""The samples of a paired comparison, complete and with their clusters numbered."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparsebench.stats.bounds import Rare
from sparsebench.stats.clusters import ClusterSums, sum_by_cluster
from sparsebench.stats.design import effective_samples
from sparsebench.stats.scale import DIFFERENCE, EXP_DIFFERENCE, Scale, exp

Array = npt.NDArray[np.float64]
Kind = Literal["binary", "continuous"]
Transform = Literal["identity", "exp"]

FEW_CHANGED = 10
ROUNDING = 2.0**-16
"""Change of a sample, as a fraction of its size or of the mean size, up to which it is rounding.

256 times what float32 rounds a number by (2**-24), as a log-likelihood is the end of thousands of sums; and what two
values come apart by that `export --bits 16` rounded. It is a hundredth of the smallest margin that is of use.
"""


def right_or_wrong(values: Iterable[Array], weights: Iterable[Array]) -> bool:
    """Whether values are 0 and 1, both of them, and all weights 1, those that are absent (NaN) apart.

    Whatever a metric is called, these are right and wrong answers; of one value alone no range is known.
    """
    tables = list(values)
    known = all(bool(((each == 0) | (each == 1) | np.isnan(each)).all()) for each in tables)
    alike = known and all(bool(((each == 1) | np.isnan(each)).all()) for each in weights)
    return alike and all(any(bool((each == value).any()) for each in tables) for value in (0, 1))


@dataclass(frozen=True)
class PairedSamples:
    """Samples of one or more cells, without missing values; all arrays are `[samples, cells]` unless noted.

    Attributes:
        dense: The baseline's numerators.
        sparse: The sparse system's numerators.
        dense_weight: The baseline's weights.
        sparse_weight: The sparse system's weights.
        index: Each sample's cluster number, `[samples]`.
        clusters: How many clusters there are.
        kind: Whether numerators are 0 or 1.
        transform: What turns a mean into the metric's value.
    """

    dense: Array
    sparse: Array
    dense_weight: Array
    sparse_weight: Array
    index: npt.NDArray[np.intp]
    clusters: int
    kind: Kind
    transform: Transform

    @property
    def independent(self) -> bool:
        """Whether each sample is a cluster of its own."""
        return self.clusters == len(self.index)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return int(self.dense.shape[1])

    @property
    def exact(self) -> bool:
        """Whether the exact binary methods apply: right or wrong, and independent."""
        return self.kind == "binary" and self.independent

    @cached_property
    def settled(self) -> PairedSamples:
        """The same with samples that differ by no more than `ROUNDING` equal.

        Else a system that gives every sample again to the last bit, of which few samples prove little, would be judged
        otherwise than one that gives them again to the sixth digit, whose tiny spread would seem to prove much.
        """
        dense, sparse = self.dense / self.dense_weight, self.sparse / self.sparse_weight
        with np.errstate(invalid="ignore"):  # infinite losses are changes, or equal
            change, size = np.abs(sparse - dense), np.abs(dense)
            known = np.isfinite(size)
            mean = np.where(known, size, 0).sum(0) / np.maximum(known.sum(0), 1)
            rounded = (change > 0) & (change <= ROUNDING * np.where(known, np.maximum(size, mean), 0))
        rounded &= self.sparse_weight == self.dense_weight
        return replace(self, sparse=np.where(rounded, self.dense, self.sparse)) if rounded.any() else self

    @cached_property
    def sums(self) -> ClusterSums:
        """The clusters' sums. Independent samples are sorted, so that their order has no part in the bootstrap."""
        tables = (self.dense, self.dense_weight, self.sparse, self.sparse_weight)
        if self.independent:
            order = np.lexsort(tables[::-1], axis=0)
            return ClusterSums(*(np.take_along_axis(table, order, 0) for table in tables))
        return ClusterSums(*(sum_by_cluster(table, self.index, self.clusters) for table in tables))

    @cached_property
    def rarely_changed(self) -> npt.NDArray[np.bool_]:
        """Whether so few clusters changed that their spread says little, `[cells]`."""
        changed = (self.sparse != self.dense) | (self.sparse_weight != self.dense_weight)
        clusters = (sum_by_cluster(changed.astype(np.float64), self.index, self.clusters) > 0).sum(0)
        return np.asarray((clusters < FEW_CHANGED) & (2 * clusters < self.clusters))

    def values(self, cell: int) -> tuple[float, float]:
        """The metric's value of the baseline and of the sparse system; NaN without samples."""
        if not len(self.index):
            return math.nan, math.nan
        dense, sparse = float(self.sums.dense_mean[cell]), float(self.sums.sparse_mean[cell])
        return (exp(dense), exp(sparse)) if self.transform == "exp" else (dense, sparse)

    @property
    def scale(self) -> Scale:
        """The scale of a change in the metric's units."""
        return EXP_DIFFERENCE if self.transform == "exp" else DIFFERENCE

    def from_difference(self, change: float, cell: int) -> float:
        """A change of the means, in the metric's units."""
        return self.scale.from_difference(change, float(self.sums.dense_mean[cell]))

    def to_difference(self, change: float, cell: int) -> float:
        """A change in the metric's units, as one of the means."""
        return self.scale.to_difference(change, float(self.sums.dense_mean[cell]))

    def flips(self, cell: int) -> tuple[int, int]:
        """How many samples fell and how many rose: for binary metrics, answers lost and gained."""
        fell, rose = self._flips
        return fell[cell], rose[cell]

    @cached_property
    def _flips(self) -> tuple[list[int], list[int]]:
        return (self.sparse < self.dense).sum(axis=0).tolist(), (self.sparse > self.dense).sum(axis=0).tolist()

    def rare(self, cell: int, *, seen: bool = True) -> Rare:
        """The exact bound on the share of samples that changed.

        The effective number of samples is the one that the clustering of the baseline's values leaves, and one sample
        is taken to move by no more than the range of all values seen (1 for right or wrong): both stand in for what
        few changes cannot tell of themselves.

        Args:
            cell: Which cell.
            seen: False for the bound that would hold had no sample changed.
        """
        if cell not in self._rare:
            weight = self.dense_weight[:, cell]
            dense, sparse = self.dense[:, cell] / weight, self.sparse[:, cell] / self.sparse_weight[:, cell]
            span = 1.0 if self.kind == "binary" else float(np.ptp(np.concatenate([dense, sparse]))) or math.inf
            share = weight / weight.sum()
            gained, lost = float(share[sparse > dense].sum()), float(share[sparse < dense].sum())
            self._rare[cell] = Rare(gained, lost, self._effective_samples(dense, weight), span)
        found = self._rare[cell]
        return found if seen else Rare(0.0, 0.0, found.n, found.span)

    @cached_property
    def _rare(self) -> dict[int, Rare]:
        return {}

    def _effective_samples(self, values: Array, weights: Array) -> float:
        """Of a baseline's values, `[samples]`: once for all cells that share them."""
        key = values.tobytes() + weights.tobytes()
        if key not in self._effective:
            self._effective[key] = effective_samples(values, weights, self.index, self.clusters)
        return self._effective[key]

    @cached_property
    def _effective(self) -> dict[bytes, float]:
        return {}
