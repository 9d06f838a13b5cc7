"""What the zeros of one tensor look like, counted in one pass over its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GROUPS = (2, 4, 8, 16)
"""Sizes m of groups of consecutive inputs."""
BLOCKS = (16, 32, 64, 128)
"""Sizes of square blocks."""
VALUE_GROUPS = (128, 64, 32)
"""Inputs that may share a scale, beside a whole row."""
SAMPLED_ROWS = 64
"""Rows of a piece in which distinct values are counted."""
MOST_BITS = 8


@dataclass
class Patterns:
    """The zeros of a tensor.

    Attributes:
        inputs: Entries of a row.
        used: For each column whether any entry is not zero, `[inputs]`.
        entries: All of them.
        zeros: Exact zeros, of either sign.
        not_finite: Infinities and NaNs.
        rows: Rows.
        zero_rows: Rows that are wholly zero.
        groups: By m, how many groups of m consecutive inputs have 0, 1, ... m zeros, `[m + 1]`.
        blocks: By size, how many square blocks there are and how many are wholly zero.
        distinct: Largest number of distinct values in one group of so many inputs (0: a row), among sampled rows.
    """

    inputs: int
    used: torch.Tensor
    entries: int = 0
    zeros: int = 0
    not_finite: int = 0
    rows: int = 0
    zero_rows: int = 0
    groups: dict[int, list[int]] = field(default_factory=dict)
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    distinct: dict[int, int] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Zeros over entries."""
        return self.zeros / self.entries if self.entries else 0.0

    @property
    def zero_columns(self) -> int:
        """Inputs that nothing reads."""
        return int((~self.used).sum())

    def fewest_zeros(self, group: int) -> int:
        """The n of the pattern n:m that every group of m inputs keeps; 0 where there is none."""
        counts = self.groups.get(group)
        return next((n for n, count in enumerate(counts) if count), 0) if counts else 0

    def share_of_groups(self, zeros: int, group: int) -> float:
        """Share of the groups of m inputs that have at least n zeros."""
        counts = self.groups.get(group)
        return sum(counts[zeros:]) / sum(counts) if counts and sum(counts) else 0.0

    def zero_blocks(self, size: int) -> float:
        """Share of the square blocks that are wholly zero."""
        whole, zero = self.blocks.get(size, (0, 0))
        return zero / whole if whole else 0.0

    @property
    def value_bits(self) -> tuple[int, int] | None:
        """The fewest bits that suffice for the values of a group with one scale, and the largest such group (0: a row).

        None where eight do not suffice. A group has to hold twice as many entries as the bits have values, or else few
        distinct values say nothing.
        """
        found = []
        for group, distinct in self.distinct.items():
            bits, width = max(1, math.ceil(math.log2(max(distinct, 2)))), group or self.inputs
            if bits <= MOST_BITS and width >= 2 * 2**bits:
                found.append((bits, -width, group))
        return (min(found)[0], min(found)[2]) if found else None


def count(pieces: Iterable[torch.Tensor], inputs: int) -> Patterns:
    """Count the zeros of a tensor.

    Args:
        pieces: Its rows, `[rows, inputs]` each; every piece but the last has a multiple of 128 rows.
        inputs: Entries of a row.
    """
    import torch

    found = Patterns(inputs, torch.zeros(inputs, dtype=torch.bool))
    for piece in pieces:
        if not piece.numel():
            continue
        values = piece.float() if piece.is_floating_point() else piece
        zero = values == 0
        found.entries += values.numel()
        found.zeros += int(zero.sum())
        if values.is_floating_point():
            found.not_finite += int((~torch.isfinite(values)).sum())
        found.rows += len(values)
        found.zero_rows += int(zero.all(1).sum())
        found.used |= (~zero).any(0)
        _groups(found, zero)
        _blocks(found, zero)
        _values(found, values)
    return found


def _groups(found: Patterns, zero: torch.Tensor) -> None:
    import torch

    for group in GROUPS:
        if found.inputs % group:
            continue
        zeros = zero.view(len(zero), -1, group).sum(-1).flatten()
        counts = torch.bincount(zeros, minlength=group + 1).tolist()
        found.groups[group] = [a + b for a, b in zip(found.groups.get(group, [0] * (group + 1)), counts, strict=True)]


def _blocks(found: Patterns, zero: torch.Tensor) -> None:
    """Blocks at the edges are as large as what is left of the tensor."""
    import torch

    for size in BLOCKS:
        pad = (0, -zero.shape[1] % size, 0, -zero.shape[0] % size)
        padded = torch.nn.functional.pad(zero, pad, value=True)
        cells = padded.view(padded.shape[0] // size, size, padded.shape[1] // size, size).all(3).all(1)
        whole, empty = found.blocks.get(size, (0, 0))
        found.blocks[size] = (whole + cells.numel(), empty + int(cells.sum()))


def _values(found: Patterns, values: torch.Tensor) -> None:
    rows = values[:: max(1, len(values) // SAMPLED_ROWS)][:SAMPLED_ROWS]
    for group in (0, *VALUE_GROUPS):
        width = group or found.inputs
        if width < 2 or found.inputs % width:
            continue
        ordered = rows.reshape(-1, width).sort(-1).values
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
        found.distinct[group] = max(found.distinct.get(group, 0), int(distinct.max()))
