"""Sparsities of layers whose mean, weighted by size, is the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

OUTLIER_FACTOR = 5.0
"""OWL's M: a score is an outlier above so many times the mean of its block."""
SPREAD = 0.08
"""OWL's lambda: sparsities lie within this distance of the target's order."""


def erk(shapes: Sequence[tuple[int, int]], sparsity: float) -> list[float]:
    """Erdős-Rényi ratios: the density of a matrix is in proportion to (in + out) / (in x out).

    For matrices this is ERK (Evci et al., "Rigging the Lottery", 2020, appendix). Where a density would exceed 1 the
    layer stays dense and the others make up for it.
    """
    if sparsity == 0:
        return [0.0] * len(shapes)
    raw = [(a + b) / (a * b) for a, b in shapes]
    sizes = [a * b for a, b in shapes]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        target = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        scale = target / sum(raw[i] * sizes[i] for i in free)
        above = {i for i in free if scale * raw[i] > 1}
        if not above:
            return [0.0 if i in dense else 1 - scale * raw[i] for i in range(len(shapes))]
        dense |= above


def owl(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = SPREAD) -> list[float]:
    """OWL's ratios: blocks with more outliers are pruned less (Yin et al., 2024, section 3.2).

    Densities are the outlier ratios scaled to the width 2 x `spread` and shifted so that their mean is the target.

    Args:
        outliers: Share of outliers in each block.
        sizes: Weights of each block.
        sparsity: The target.
        spread: Half the distance between the sparsest and the densest block.
    """
    low, high = min(outliers), max(outliers)
    scaled = [2 * spread * (x - low) / (high - low) if high > low else 0.0 for x in outliers]
    mean = sum(x * n for x, n in zip(scaled, sizes, strict=True)) / sum(sizes)
    return levelled([sparsity + mean - x for x in scaled], sizes, sparsity)


def ecoflap(sensitivities: Sequence[float], sizes: Sequence[int], sparsity: float, slack: float) -> list[float]:
    """ECoFLaP's ratios: each block keeps a least share, and the rest is dealt out in proportion to its sensitivity.

    A block that would keep more than it has stays dense, and the others share what it leaves (Sung et al., 2024).

    Args:
        sensitivities: Size of the gradient of each block.
        sizes: Weights of each block.
        sparsity: The target.
        slack: How far above the target the sparsity of a block may rise.
    """
    ceiling = min(1.0, sparsity + slack)
    kept = [size * (1 - ceiling) for size in sizes]
    worth = list(sensitivities) if sum(sensitivities) > 0 else [float(size) for size in sizes]
    left = (1 - sparsity) * sum(sizes) - sum(kept)
    while left > 1e-9 * sum(sizes) and sum(worth) > 0:
        total = sum(worth)
        dealt = [left * (part / total) for part in worth]  # parts may be the smallest of numbers
        kept = [min(size, k + d) for size, k, d in zip(sizes, kept, dealt, strict=True)]
        worth = [0.0 if k >= size else part for k, size, part in zip(kept, sizes, worth, strict=True)]
        left = (1 - sparsity) * sum(sizes) - sum(kept)
    return levelled([1 - k / size for k, size in zip(kept, sizes, strict=True)], sizes, sparsity)


def levelled(sparsities: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """The same ratios between 0 and 1; what clipping takes from some is given to those that have room."""
    found = list(sparsities)
    for _ in range(100):
        found = [min(max(s, 0.0), 1.0) for s in found]
        lacking = target * sum(sizes) - sum(s * n for s, n in zip(found, sizes, strict=True))
        free = [i for i, s in enumerate(found) if (s < 1 if lacking > 0 else s > 0)]
        if abs(lacking) < 1e-9 * sum(sizes) or not free:
            break
        share = lacking / sum(sizes[i] for i in free)
        found = [s + share if i in free else s for i, s in enumerate(found)]
    return found


def outlier_share(scores: Sequence[torch.Tensor], factor: float = OUTLIER_FACTOR) -> float:
    """Share of a block's scores that exceed `factor` times their mean over the block; 0 where it has none."""
    size = sum(score.numel() for score in scores)
    if not size:
        return 0.0
    mean = sum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > factor * mean).sum()) for score in scores) / size
