"""Functions of several means, resampled jointly: where a statistic is not one paired difference.

Clusters of each set of samples are drawn with replacement; sets are independent of each other, and all rows of a set
see the same draws. Bounds are the outermost of two: percentiles of the draws, and a t interval with the jackknife's
error over clusters, since percentiles alone are too narrow where clusters are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparsebench.findings.results import Sheet
from sparsebench.stats.bounds import Bounds, Outermost, Student, Unknown
from sparsebench.stats.clusters import sum_by_cluster
from sparsebench.stats.resample import bootstrap_counts

Array = npt.NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]
"""From the means of each set, `[draws, rows]`, to a number for each draw, `[draws]`; NaN where it has none."""


@dataclass(frozen=True)
class Percentile:
    """Percentile bounds of a bootstrap; draws without a value count against every conclusion.

    Attributes:
        draws: The statistic in each draw, `[draws]`.
    """

    draws: Array

    @cached_property
    def _sorted(self) -> tuple[Array, Array]:
        """For bounds from below and from above: undefined draws at the end where they hurt."""
        return (
            np.sort(np.nan_to_num(self.draws, nan=-np.inf, posinf=np.inf, neginf=-np.inf)),
            np.sort(np.nan_to_num(self.draws, nan=np.inf, posinf=np.inf, neginf=-np.inf)),
        )

    def lower(self, alpha: float) -> float:
        """The value that a share `alpha` of draws is at most."""
        rank = math.floor(alpha * (len(self.draws) + 1) + 1e-9)
        return float(self._sorted[0][rank - 1]) if rank > 0 else -math.inf

    def upper(self, alpha: float) -> float:
        """The value that a share `alpha` of draws is at least."""
        rank = math.floor(alpha * (len(self.draws) + 1) + 1e-9)
        return float(self._sorted[1][-rank]) if rank > 0 else math.inf

    def p_above(self, x: float) -> float:
        """The share of draws that are at most `x`."""
        return (1 + int(np.searchsorted(self._sorted[0], x, "right"))) / (len(self.draws) + 1)

    def p_below(self, x: float) -> float:
        """The share of draws that are at least `x`."""
        return (1 + len(self.draws) - int(np.searchsorted(self._sorted[1], x, "left"))) / (len(self.draws) + 1)


@dataclass(frozen=True)
class Sums:
    """Sums of a sheet by cluster, `[clusters, rows]`."""

    numerator: Array
    weight: Array

    @classmethod
    def of(cls, sheet: Sheet) -> Sums:
        """The sums of a sheet."""
        count = int(sheet.clusters.max()) + 1
        index = sheet.clusters.astype(np.intp)
        return cls(sum_by_cluster(sheet.values, index, count), sum_by_cluster(sheet.weights, index, count))

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.numerator)

    @property
    def means(self) -> Array:
        """The means themselves, `[1, rows]`."""
        return np.asarray(self.numerator.sum(0) / self.weight.sum(0))[None]

    @property
    def left_out(self) -> Array:
        """The means without each cluster, `[clusters, rows]`."""
        weight = self.weight.sum(0) - self.weight
        return np.asarray((self.numerator.sum(0) - self.numerator) / np.where(weight > 0, weight, np.nan))

    @property
    def freedom(self) -> float:
        """Kish's effective number of clusters, less one."""
        share = self.weight.sum(1) / self.weight.sum()
        return float(1 / (share**2).sum() - 1)

    def drawn(self, resamples: int, seed: int) -> Array:
        """The means in each resample, `[resamples, rows]`."""
        parts = [
            (counts @ self.numerator) / (counts @ self.weight)
            for counts in bootstrap_counts(self.clusters, resamples, seed)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Joint:
    """A statistic with what is known of it.

    Attributes:
        value: Its value; NaN where it has none.
        bounds: Its bounds.
        draws: Its value in each draw, `[draws]`.
    """

    value: float
    bounds: Bounds
    draws: Array


class Resampled:
    """Some sets of samples, drawn once for all statistics that are asked of them.

    Args:
        sheets: The sets.
        resamples: How many draws.
        seed: Of the draws.
    """

    def __init__(self, sheets: Sequence[Sheet], resamples: int, seed: int) -> None:
        self.sums = [Sums.of(sheet) for sheet in sheets]
        self.drawn = [sums.drawn(resamples, seed + place) for place, sums in enumerate(self.sums)]

    def joint(self, statistic: Statistic) -> Joint:
        """A statistic of the sets' means."""
        with np.errstate(all="ignore"):
            value = float(statistic([sums.means for sums in self.sums])[0])
            draws = np.asarray(statistic(self.drawn), dtype=np.float64)
            error, freedom = self._jackknife(statistic)
        if not (math.isfinite(value) and math.isfinite(error) and freedom > 0):
            return Joint(value, Unknown() if math.isnan(value) else Percentile(draws), draws)
        return Joint(value, Outermost((Student(value, error, freedom), Percentile(draws))), draws)

    def _jackknife(self, statistic: Statistic) -> tuple[float, float]:
        """The error over clusters of all sets, and its degrees of freedom by Satterthwaite's rule."""
        variances, freedoms = [], []
        for place, sums in enumerate(self.sums):
            if sums.clusters < 2:
                return math.inf, 0.0
            means = [np.broadcast_to(s.means, (sums.clusters, s.means.shape[1])) for s in self.sums]
            means[place] = sums.left_out
            values = statistic(means)
            variances.append((sums.clusters - 1) * float(np.mean((values - values.mean()) ** 2)))
            freedoms.append(sums.freedom)
        total = sum(variances)
        if total == 0:
            return 0.0, min(freedoms)
        spent = sum(v**2 / max(f, 1e-9) for v, f in zip(variances, freedoms, strict=True))
        return math.sqrt(total), total**2 / spent
