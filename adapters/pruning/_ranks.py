"""Ranks of many matrices from one threshold on their singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Matrix:
    """A matrix by its size and its singular values, float32 [min(rows, columns)], largest first."""

    rows: int
    columns: int
    values: torch.Tensor

    @property
    def size(self) -> int:
        """Entries."""
        return self.rows * self.columns

    @property
    def normalised(self) -> torch.Tensor:
        """Singular values scaled so that the least is 0 and the largest 1."""
        low, high = self.values.min(), self.values.max()
        return (self.values - low) / (high - low) if high > low else torch.ones_like(self.values)

    def factored(self, rank: int) -> int:
        """Entries of two factors of that rank."""
        return rank * (self.rows + self.columns)

    def fits(self, rank: int, cut: float) -> bool:
        """Whether factors of that rank may stand for it: at most the share `cut` of its rank, and fewer entries."""
        return rank <= cut * len(self.values) and self.factored(rank) < self.size


def ranks(matrices: Sequence[Matrix], sparsity: float, cut: float) -> list[int | None]:
    """The rank of each matrix, or None where it stays dense, so that factors save the share `sparsity` of all entries.

    The threshold is the smallest that saves at least so much. What it saves beyond is given back: of the singular
    values that factorised matrices lost, the largest stay, for as long as no matrix keeps more than the share `cut` of
    its rank. Where all have so much, more is saved than was asked for.
    """
    spectra = [matrix.normalised for matrix in matrices]
    target = sparsity * sum(matrix.size for matrix in matrices)
    steps = np.unique(torch.cat(spectra).numpy())

    def at(place: int) -> list[int | None]:
        kept = [max(1, int((spectrum >= float(steps[place])).sum())) for spectrum in spectra]
        return [rank if matrix.fits(rank, cut) else None for matrix, rank in zip(matrices, kept, strict=True)]

    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if saved(matrices, at(middle)) >= target else (middle + 1, high)
    return _raised(matrices, spectra, at(low), target, cut)


def saved(matrices: Sequence[Matrix], found: Sequence[int | None]) -> int:
    """Entries that factors of those ranks save."""
    pairs = zip(matrices, found, strict=True)
    return sum(matrix.size - matrix.factored(rank) for matrix, rank in pairs if rank is not None)


def _raised(
    matrices: Sequence[Matrix], spectra: Sequence[torch.Tensor], found: list[int | None], target: float, cut: float
) -> list[int | None]:
    """The same ranks, raised up to the cut where the largest values went for as long as the target is still met."""
    beyond = saved(matrices, found) - target
    gone = [
        (-float(value), index)
        for index, (rank, spectrum) in enumerate(zip(found, spectra, strict=True))
        if rank is not None
        for value in spectrum[rank:]
    ]
    for _, index in sorted(gone):
        matrix, rank = matrices[index], (found[index] or 0) + 1
        step = matrix.rows + matrix.columns
        if step <= beyond and matrix.fits(rank, cut):
            found[index] = rank
            beyond -= step
    return found
