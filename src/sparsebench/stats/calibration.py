"""Calibration error: whether a model's confidence is its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.clusters import cluster_index, sum_by_cluster
from sparsebench.stats.resample import bootstrap_counts

BINS = 15


@dataclass(frozen=True)
class CalibrationError:
    """How far confidence is from accuracy.

    Attributes:
        error: Expected calibration error, 0 to 1.
        low: Lower end of its percentile bootstrap interval; the error cannot be negative, and is biased upwards where
            bins hold few samples.
        high: Upper end.
        gap: Mean confidence less accuracy: positive for a model that is too sure of itself.
        n: Samples.
    """

    error: float
    low: float
    high: float
    gap: float
    n: int


def calibration_error(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    bins: int = BINS,
    confidence_level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CalibrationError:
    """Expected calibration error over bins of equal width (Guo et al. 2017, equation 3).

    ECE is the mean over samples of |accuracy - mean confidence| of the bin that a sample falls into. Bin k of K holds
    confidences in (k / K, (k + 1) / K].

    Args:
        confidence: The probability that each sample's chosen answer was given, 0 to 1, `[samples]`; NaN for samples
            that have no part in it.
        correct: 1 where that answer was right, else 0, `[samples]`.
        clusters: Cluster labels, `[samples]`; None for independent samples.
        bins: Number of bins.
        confidence_level: Of the interval.
        resamples: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        InputError: If shapes differ, nothing is left, or a confidence is no probability.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1:
        raise InputError(f"confidences of shape {sure.shape} and answers of shape {right.shape}", "give one of each")
    present = ~(np.isnan(sure) | np.isnan(right))
    if not present.any():
        raise InputError("no sample has a confidence and an answer")
    if (sure[present] < 0).any() or (sure[present] > 1).any():
        raise InputError("a confidence is no probability", "give probabilities from 0 to 1")
    index, count = cluster_index(clusters, present)
    sure, right = sure[present], right[present]
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    excess = np.zeros((len(sure), bins))
    excess[np.arange(len(sure)), place] = sure - right
    by_cluster = sum_by_cluster(excess, index, count)
    sizes = sum_by_cluster(np.ones((len(sure), 1)), index, count)
    drawn = np.concatenate(
        [
            np.abs(counts @ by_cluster).sum(axis=1) / (counts @ sizes)[:, 0]
            for counts in bootstrap_counts(count, resamples, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    error = float(np.abs(by_cluster.sum(axis=0)).sum() / len(sure))
    return CalibrationError(error, float(low), float(high), float((sure - right).mean()), len(sure))
