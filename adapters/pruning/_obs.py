"""SparseGPT's arithmetic: pruning a matrix column by column, each error mended in the columns that follow."""

from __future__ import annotations

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


def prune(weight: torch.Tensor, gram: torch.Tensor, allotment: Allotment) -> torch.Tensor:
    """The pruned and mended matrix (Frantar and Alistarh, 2023, algorithm 1, with lazy updates of 128 columns).

    Args:
        weight: float32 [out, in].
        gram: X X^T, [in, in].
        allotment: A share of each block of columns, or a pattern that is chosen when its first column is reached.

    Returns:
        float32 [out, in]. Columns of inputs that were never fed are zero.
    """
    factor = inverse_factor(gram)
    mended = weight.T.clone(memory_format=torch.contiguous_format)  # [in, out]: a column of the matrix lies in one piece
    mended[gram.diagonal() == 0] = 0
    group = allotment.pattern[1] if allotment.pattern else 1
    width = max(BLOCK // group, 1) * group
    for first in range(0, len(mended), width):
        last = min(first + width, len(mended))
        errors = torch.zeros_like(mended[first:last])
        _prune_block(mended[first:last], factor[first:last, first:last], allotment, errors)
        mended[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return mended.T.contiguous()


FEW = 16
"""Columns that are pruned one by one before their errors are mended in all that follow."""


def _prune_block(block: torch.Tensor, factor: torch.Tensor, allotment: Allotment, errors: torch.Tensor) -> None:
    """Prune a block of columns in place.

    Args:
        block: The columns, [width, out].
        factor: Their part of `inverse_factor`, [width, width].
        allotment: See `prune`.
        errors: Takes what the columns after the block have to mend, over the factor's diagonal, [width, out].
    """
    gone = torch.zeros_like(block, dtype=torch.bool)
    if allotment.pattern is None:
        gone = mask(saliency(block.T, factor), Allotment(allotment.sparsity, "block")).T.contiguous()
    group = allotment.pattern[1] if allotment.pattern else 1
    few = max(FEW // group, 1) * group
    for first in range(0, len(block), few):
        last = min(first + few, len(block))
        for column in range(first, last):
            if allotment.pattern is not None and column % group == 0 and column + group <= len(block):
                these = slice(column, column + group)
                gone[these] = smallest(saliency(block[these].T, factor[these, these]), allotment.pattern[0]).T
            errors[column] = torch.where(gone[column], block[column], 0) / factor[column, column]
            block[column + 1 : last].addr_(factor[column, column + 1 : last], errors[column], alpha=-1)
        block[last:].addmm_(factor[first:last, last:].T, errors[first:last], alpha=-1)
    block.masked_fill_(gone, 0)
