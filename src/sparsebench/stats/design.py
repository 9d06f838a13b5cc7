"""How much clustering costs: design effects and effective sample sizes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def design_effect(values: Array, weights: Array, index: npt.NDArray[np.intp], clusters: int) -> float:
    """Variance of the weighted mean with clusters, over its variance were samples independent (Kish 1965).

    Never below 1, and never above what wholly alike samples in each cluster would give; the latter also where the
    values do not vary, since nothing is known then. For equal clusters of m samples with intraclass correlation r it is
    1 + (m - 1) r.

    Args:
        values: One value a sample, `[samples]`.
        weights: Weights of the samples, `[samples]`.
        index: The number of each sample's cluster, `[samples]`.
        clusters: How many clusters there are.
    """
    share = weights / weights.sum()
    most = float((np.bincount(index, share, minlength=clusters) ** 2).sum() / (share**2).sum())
    residual = share * (values - (share * values).sum())
    independent = float((residual**2).sum()) * len(values) / max(len(values) - 1, 1)
    clustered = float((np.bincount(index, residual, minlength=clusters) ** 2).sum()) * clusters / max(clusters - 1, 1)
    return min(max(clustered / independent, 1.0), most) if independent > 0 else most


def effective_samples(values: Array, weights: Array, index: npt.NDArray[np.intp], clusters: int) -> float:
    """How many independent samples of equal weight would tell as much: Kish's number over the design effect."""
    kish = float(weights.sum() ** 2 / (weights**2).sum())
    return kish / design_effect(values, weights, index, clusters)
