"""Which weights go: exactly so many of the lowest scores in each compare group, ties by lowest index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import floor

import numpy as np
import torch

from sparsebench.adapters.pruning.base import Allotment
from sparsebench.adapters.selection import smallest, smallest_of_all, take_equal

BLOCK = 128
"""Columns of a block."""


def rounded(sparsity: float, size: int) -> int:
    """How many of `size` weights go: the nearest whole number, halves up."""
    return floor(sparsity * size + 0.5)


def mask(score: torch.Tensor, allotment: Allotment) -> torch.Tensor:
    """Which weights of one layer go.

    Args:
        score: Importance, float32 [out, in]; the lowest go.
        allotment: How many, compared with which others.

    Returns:
        Bool [out, in], True where a weight goes. Of a pattern n:m, columns after the last whole group of m stay.
    """
    if allotment.pattern is not None:
        return _pattern_mask(score, *allotment.pattern)
    if allotment.group == "row":
        return smallest(score, rounded(allotment.sparsity, score.shape[1]))
    width = score.shape[1] if allotment.group == "layer" else BLOCK
    starts = range(0, score.shape[1], width)
    blocks = [_flat_mask(score[:, first : first + width], allotment.sparsity) for first in starts]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _flat_mask(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    return smallest(score.reshape(1, -1), rounded(sparsity, score.numel())).reshape(score.shape)


def _pattern_mask(score: torch.Tensor, zeros: int, group: int) -> torch.Tensor:
    whole = score.shape[1] // group * group
    chosen = smallest(score[:, :whole].reshape(-1, group), zeros).reshape(len(score), whole)
    return torch.nn.functional.pad(chosen, (0, score.shape[1] - whole))


def global_masks(scores: Callable[[], Iterable[torch.Tensor]], sparsity: float, size: int) -> Iterator[torch.Tensor]:
    """Masks of many layers that are compared as one; `scores` is called three times, and holds no two layers at once.

    Args:
        scores: Gives the scores of the layers, the same each time.
        sparsity: Share of all weights that go.
        size: Number of all weights.
    """
    count = rounded(sparsity, size)
    if count == 0:
        yield from (torch.zeros_like(score, dtype=torch.bool) for score in scores())
        return
    cut, room = smallest_of_all(scores, count)
    for score in scores():
        chosen, room = take_equal(score, cut, room)
        yield chosen


def pack(chosen: torch.Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """A mask as bits."""
    return np.packbits(chosen.cpu().numpy()), tuple(chosen.shape)


def unpack(packed: tuple[np.ndarray, tuple[int, ...]]) -> torch.Tensor:
    """The inverse of `pack`."""
    bits, shape = packed
    flat = np.unpackbits(bits, count=int(np.prod(shape)))
    return torch.from_numpy(flat.view(np.bool_).reshape(shape))
