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
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True).float()
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
    weight = weight.clone()
    weight[:, gram.diagonal() == 0] = 0
    group = allotment.pattern[1] if allotment.pattern else 1
    width = max(BLOCK // group, 1) * group
    for first in range(0, weight.shape[1], width):
        last = min(first + width, weight.shape[1])
        block, errors = _prune_block(weight[:, first:last].clone(), factor[first:last, first:last], allotment)
        weight[:, first:last] = block
        weight[:, last:] -= errors @ factor[first:last, last:]
    return weight


def _prune_block(block: torch.Tensor, factor: torch.Tensor, allotment: Allotment) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of columns pruned, and its errors over their diagonal, which the columns after it have to mend."""
    errors = torch.zeros_like(block)
    gone = torch.zeros_like(block, dtype=torch.bool)
    if allotment.pattern is None:
        gone = mask(saliency(block, factor), Allotment(allotment.sparsity, "block"))
    for column in range(block.shape[1]):
        if allotment.pattern is not None:
            zeros, group = allotment.pattern
            after = column + group
            if column % group == 0 and after <= block.shape[1]:
                part = saliency(block[:, column:after], factor[column:after, column:after])
                gone[:, column:after] = smallest(part, zeros)
        lost = torch.where(gone[:, column], block[:, column], 0)
        errors[:, column] = lost / factor[column, column]
        block[:, column:] -= errors[:, column, None] * factor[column, column:]
    return block.masked_fill_(gone, 0), errors
