"""SparseGPT's and GPTQ's arithmetic: a matrix is settled column by column, each error mended in those that follow."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import torch

from sparsebench.adapters.pruning._groups import BLOCK, mask
from sparsebench.adapters.pruning.base import Allotment
from sparsebench.adapters.selection import smallest

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of X X^T."""


def inverse_factor(gram: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The upper Cholesky factor U of the inverse of the damped X X^T = H, so that H^-1 = U^T U; float32 [in, in].

    Its squared diagonal is what an input's variance is once all inputs before it are fixed. Channels that were never
    fed count as independent with unit variance.
    """
    damped = gram.to(torch.float64, copy=True)
    diagonal = damped.diagonal()  # a view: writing to it writes to `damped`
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    # H = R R^T with R upper triangular is the Cholesky factorisation of H read backwards, and then U = R^-1: a third of
    # the work of inverting H and factorising the inverse, and more exact.
    root = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    factor: torch.Tensor = torch.linalg.solve_triangular(root, identity, upper=True).float()
    return factor


def saliency(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The error that leaving out each weight makes, once the columns after it have mended what they can; [out, in]."""
    return weight.square() / factor.diagonal().square()


Settle = Callable[[int, torch.Tensor], torch.Tensor]
"""What a column of a group becomes, from its place in the group and what it is once all before it are mended, [out]."""


def prune(weight: torch.Tensor, gram: torch.Tensor, allotment: Allotment, damping: float = DAMPING) -> torch.Tensor:
    """The pruned and mended matrix (Frantar and Alistarh, 2023, algorithm 1).

    Args:
        weight: float32 [out, in].
        gram: X X^T, [in, in].
        allotment: A share of each block of columns, or a pattern that is chosen when its first column is reached.
        damping: See `DAMPING`.

    Returns:
        float32 [out, in]. Columns of inputs that were never fed are zero.
    """
    zeros, group = allotment.pattern or (0, BLOCK)

    def begin(first: int, columns: torch.Tensor, factor: torch.Tensor) -> Settle:
        score = saliency(columns.T, factor)
        if allotment.pattern is None:
            gone = mask(score, Allotment(allotment.sparsity, "block")).T.contiguous()
        else:
            gone = smallest(score, zeros if len(columns) == group else 0).T.contiguous()
        return lambda place, column: column.masked_fill(gone[place], 0)

    return swept(weight, gram, group, begin, damping)


FEW = 16
"""Columns that are settled one by one before their errors are mended in the rest of a block."""


def swept(
    weight: torch.Tensor,
    gram: torch.Tensor,
    group: int,
    begin: Callable[[int, torch.Tensor, torch.Tensor], Settle],
    damping: float = DAMPING,
) -> torch.Tensor:
    """A matrix whose columns are settled from left to right, each one's error mended in those that follow.

    Errors are mended at once in the next few columns, after these in the block of 128, and after the block in all.

    Args:
        weight: float32 [out, in].
        gram: X X^T, [in, in].
        group: Columns that `begin` sees together.
        begin: Called when the first column of a group is reached, with its place, the group's columns as they are by
            then [group, out], and their part of `inverse_factor` [group, group]; says how they are settled.
        damping: See `DAMPING`.

    Returns:
        float32 [out, in]. Columns of inputs that were never fed are settled as zeros.
    """
    factor = inverse_factor(gram, damping)
    mended = weight.T.clone(memory_format=torch.contiguous_format)  # a column of the matrix lies in one piece
    mended[gram.diagonal() == 0] = 0
    count, width, few = len(mended), _aligned(BLOCK, group), _aligned(FEW, group)
    settle: Settle = _as_it_is
    for first in range(0, count, width):
        last = min(first + width, count)
        errors = torch.zeros_like(mended[first:last])
        for low in range(first, last, few):
            high = min(low + few, last)
            for column in range(low, high):
                if column % group == 0:
                    these = slice(column, min(column + group, count))
                    settle = begin(column, mended[these], factor[these, these])
                settled = settle(column % group, mended[column])
                errors[column - first] = (mended[column] - settled) / factor[column, column]
                mended[column] = settled
                mended[column + 1 : high].addr_(factor[column, column + 1 : high], errors[column - first], alpha=-1)
            mended[high:last].addmm_(factor[low:high, high:last].T, errors[low - first : high - first], alpha=-1)
        mended[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return mended.T.contiguous()


def _as_it_is(place: int, column: torch.Tensor) -> torch.Tensor:
    return column


def _aligned(most: int, group: int) -> int:
    """A step of at most so many columns that never begins a group within itself, unless the group ends there too."""
    return most // group * group if group <= most else gcd(most, group)
