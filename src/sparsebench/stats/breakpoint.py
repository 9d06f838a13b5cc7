"""Where a curve breaks: two lines that meet, against a smooth logistic curve.

Both have four parameters, and any convex curve has some best breakpoint; so a breakpoint is a finding only if two
lines predict left-out levels better than the logistic curve does, and if it is located.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.clusters import as_table, cluster_index, sum_by_cluster
from sparsebench.stats.curves import best_on_grid, fit, left_out_errors, logistic, two_lines
from sparsebench.stats.resample import bootstrap_counts

Array = npt.NDArray[np.float64]

FEWEST_LEVELS = 6


@dataclass(frozen=True)
class Breakpoint:
    """A two-piece fit, its breakpoint, and how it compares with a smooth curve.

    Attributes:
        at: The level where the two lines meet.
        low: Lower end of its percentile bootstrap interval.
        high: Upper end.
        slope_before: Slope of the first line.
        slope_after: Slope of the second line.
        advantage: The logistic curve's mean squared error on left-out levels, less that of the two lines.
        advantage_error: Its standard error over levels.
        supported: Whether the advantage is at least two standard errors and the interval no wider than asked.
    """

    at: float
    low: float
    high: float
    slope_before: float
    slope_after: float
    advantage: float
    advantage_error: float
    supported: bool


def find_breakpoint(
    levels: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    widest: float = 0.1,
    resamples: int = 10_000,
    seed: int = 0,
) -> Breakpoint:
    """Fit two lines that meet to a metric's curve over sparsity levels.

    The curve's height at a level is `sum(values) / sum(weights)` there; for perplexity it is the mean negative
    log-likelihood. Clusters are resampled jointly at all levels, as the levels share their samples.

    Args:
        levels: The levels, increasing, `[levels]`; at least six.
        values: Numerators, `[samples, levels]`.
        weights: Denominators, `[samples]` or `[samples, levels]`; None for 1 each.
        clusters: Cluster labels, `[samples]`; None for independent samples.
        confidence: Of the breakpoint's interval.
        widest: The widest interval that still counts as located, in units of the levels.
        resamples: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        InputError: If shapes do not fit, values are missing, or levels are too few or not increasing.
    """
    x = np.asarray(levels, dtype=np.float64)
    table = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < FEWEST_LEVELS or not (np.diff(x) > 0).all():
        raise InputError(f"a breakpoint needs at least {FEWEST_LEVELS} increasing levels", f"got {levels!r}")
    if table.ndim != 2 or table.shape[1] != len(x) or not np.isfinite(table).all():
        raise InputError(f"values of shape {table.shape} for {len(x)} levels", "give complete [samples, levels]")
    n = len(table)
    index, count = cluster_index(clusters, np.ones(n, dtype=bool))
    weight = as_table(np.ones(n) if weights is None else weights, n, len(x), "the weights")
    numerator, denominator = sum_by_cluster(table, index, count), sum_by_cluster(weight, index, count)
    curve = numerator.sum(0) / denominator.sum(0)
    lines = two_lines(x)
    found = fit(x, curve, lines)
    drawn = np.concatenate(
        [
            lines.grid[best_on_grid(x, ((counts @ numerator) / (counts @ denominator)).T, lines), 0]
            for counts in bootstrap_counts(count, resamples, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    gains = left_out_errors(x, curve, logistic) - left_out_errors(x, curve, two_lines)
    advantage, error = float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))
    _, before, bend = found.linear
    return Breakpoint(
        at=float(found.nonlinear[0]),
        low=float(low),
        high=float(high),
        slope_before=float(before),
        slope_after=float(before + bend),
        advantage=advantage,
        advantage_error=error,
        supported=advantage > 0 and advantage >= 2 * error and float(high - low) <= widest,
    )
