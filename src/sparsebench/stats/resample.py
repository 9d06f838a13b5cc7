"""Resampling of clusters: the studentised bootstrap and the sign-flip permutation test.

Both draw once for all cells that share their samples, and then need only matrix products: `(resamples x clusters) @
(clusters x cells)`. The draws are a function of the seed, the number of clusters and the number of resamples alone, so
a cell has the same result whichever cells stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.stats.bounds import Studentised
from sparsebench.stats.clusters import ClusterSums
from sparsebench.stats.scale import Scale

Array = npt.NDArray[np.float64]

_CHUNK = 1 << 20
_ROWS = 1 << 11
_ROUNDING = 1e-6


def bootstrap_counts(clusters: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each cluster is drawn in each resample, in chunks of `[rows, clusters]`.

    Every row is multinomial: as many draws as there are clusters, with replacement.
    """
    generator = np.random.default_rng([seed, 0])
    rows = max(1, min(_ROWS, _CHUNK // clusters))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(0, clusters, size=(size, clusters))
        drawn += clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * clusters)
        yield counts.reshape(size, clusters).astype(np.float64)


@dataclass(frozen=True)
class Bootstrap:
    """Resampled effects of each cell on one scale.

    Attributes:
        estimate: The effect on the samples themselves, `[cells]`.
        error: Its standard error, by the formula that the resamples use, `[cells]`.
        estimates: The effect on each resample, `[resamples, cells]`; joint across the cells.
        errors: The standard error within each resample, `[resamples, cells]`.
    """

    estimate: Array
    error: Array
    estimates: Array
    errors: Array

    def studentised(self, cell: int) -> Studentised:
        """One cell's bootstrap-t; a resample whose variation is nothing but rounding has no t."""
        estimate, error, errors = self.estimate[cell], self.error[cell], self.errors[:, cell]
        errors = np.where(errors > _ROUNDING * error, errors, np.nan)
        return Studentised(float(estimate), float(error), np.sort((self.estimates[:, cell] - estimate) / errors))


def bootstrap(sums: ClusterSums, scales: Sequence[Scale], *, resamples: int, seed: int) -> list[Bootstrap]:
    """Resample clusters with replacement, and give each resample's effect with its own standard error.

    The standard error is the delta method's, recomputed in each resample (Efron and Tibshirani 1993, 12.5). Sums of
    squares are taken of the paired change, not of the two systems apart, so that changes of 1e-8 keep their digits.

    Args:
        sums: The clusters' sums, `[clusters, cells]`.
        scales: The scales that are wanted; they share their draws.
        resamples: How many resamples.
        seed: A non-negative integer.
    """
    terms = [sums.residual_change, sums.dense_residual, sums.dense_weight]
    if not np.array_equal(sums.sparse_weight, sums.dense_weight):
        terms.append(sums.sparse_weight - sums.dense_weight)
    pairs = [(i, j) for i in range(len(terms)) for j in range(i, len(terms))]
    columns = np.stack([*terms, *((1 if i == j else 2) * terms[i] * terms[j] for i, j in pairs)])

    def effects(counts: Array) -> list[tuple[Array, Array]]:
        products = counts @ columns
        change, dense, dense_weight = products[:3]
        sparse_weight = dense_weight + products[3] if len(terms) == 4 else dense_weight
        dense_shift, sparse_shift = dense / dense_weight, (change + dense) / sparse_weight
        sparse_mean, dense_mean = sums.sparse_mean + sparse_shift, sums.dense_mean + dense_shift
        results = []
        for scale in scales:
            by_sparse, by_dense = scale.gradient(sparse_mean, dense_mean)
            by_sparse, by_dense = by_sparse / sparse_weight, by_dense / dense_weight
            weight_factor = -by_sparse * sparse_shift
            factors = [by_sparse, by_sparse + by_dense, weight_factor - by_dense * dense_shift, weight_factor]
            variance = np.zeros_like(change)
            for squares, (i, j) in zip(products[len(terms) :], pairs, strict=True):
                variance += factors[i] * factors[j] * squares
            results.append((scale.estimate(sparse_mean, dense_mean), np.sqrt(np.maximum(variance, 0))))
        return results

    whole = effects(np.ones((1, sums.clusters)))
    drawn = [effects(counts) for counts in bootstrap_counts(sums.clusters, resamples, seed)]
    return [
        Bootstrap(
            estimate=whole[k][0][0],
            error=whole[k][1][0],
            estimates=np.concatenate([chunk[k][0] for chunk in drawn]),
            errors=np.concatenate([chunk[k][1] for chunk in drawn]),
        )
        for k in range(len(scales))
    ]


def sign_flips(clusters: int, resamples: int, seed: int) -> Iterator[Array]:
    """Signs +1 and -1 in chunks of `[rows, clusters]`: every assignment where that takes no more than `resamples`."""
    exhaustive = 2**clusters <= resamples
    total = 2**clusters if exhaustive else resamples
    generator = np.random.default_rng([seed, 1])
    rows = max(1, min(_ROWS, _CHUNK // clusters))
    for start in range(0, total, rows):
        size = min(rows, total - start)
        if exhaustive:
            bits = (np.arange(start, start + size)[:, None] >> np.arange(clusters)) & 1
        else:
            bits = generator.integers(0, 2, size=(size, clusters), dtype=np.int8)
        yield (1 - 2 * bits).astype(np.float64)


@dataclass(frozen=True)
class SignFlip:
    """p values of the sign-flip permutation test, `[cells]`.

    Attributes:
        below: One-sided, against sparse being lower than dense.
        above: One-sided, against sparse being higher than dense.
        two_sided: Against either.
    """

    below: Array
    above: Array
    two_sided: Array


def sign_flip(sums: ClusterSums, *, resamples: int, seed: int) -> SignFlip:
    """Permutation test of "in each cluster, dense and sparse may be swapped".

    The statistic is the difference of the two means. It is exact when all 2 ** clusters assignments are taken, which
    happens when there are at most `resamples`; otherwise the observed one counts among the draws, so that p is never
    below 1 / (resamples + 1).
    """
    change, weight_change = sums.sparse - sums.dense, sums.sparse_weight - sums.dense_weight
    total, total_weight = (sums.sparse + sums.dense).sum(0), (sums.sparse_weight + sums.dense_weight).sum(0)
    same_weights = not weight_change.any()

    def difference(signs: Array) -> Array:
        flipped, weight = signs @ change, 0.0 if same_weights else signs @ weight_change
        return np.asarray((total + flipped) / (total_weight + weight) - (total - flipped) / (total_weight - weight))

    observed = difference(np.ones((1, sums.clusters)))[0]
    # Assignments that give the observed value in exact arithmetic must count as ties.
    slack = 1e-9 * np.abs(change).sum(0) / total_weight + 1e-15 * np.abs(total / total_weight)
    at_most, at_least, as_far, count = (np.zeros_like(observed) for _ in range(4))
    for signs in sign_flips(sums.clusters, resamples, seed):
        value = difference(signs)
        at_most += (value <= observed + slack).sum(0)
        at_least += (value >= observed - slack).sum(0)
        as_far += (np.abs(value) >= np.abs(observed) - slack).sum(0)
        count += len(signs)
    drawn = 0 if 2**sums.clusters <= resamples else 1
    return SignFlip(*(np.minimum((hits + drawn) / (count + drawn), 1) for hits in (at_most, at_least, as_far)))
