"""Round to nearest: the plainest quantisation, to compare sparsity with at equal bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning._storing import DENSE_BITS, StoringAdapter
from sparsebench.budget import Budget
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.systems.weights import Stored


class RoundToNearest(StoringAdapter):
    """Each group of weights on an even grid between its least and its greatest; nothing is calibrated."""

    card: ClassVar[MethodCard] = MethodCard(
        id="rtn",
        family="pruning",
        title="Round to nearest",
        summary="Weights are rounded to codes of a few bits with a scale for each group of inputs; none is left out.",
        paper=Paper(
            title="A White Paper on Neural Network Quantization",
            authors="Markus Nagel and Marios Fournarakis and Rana Ali Amjad and Yelysei Bondarenko and "
            "Mart van Baalen and Tijmen Blankevoort",
            year=2021,
            venue="arXiv:2106.08295",
            url="https://arxiv.org/abs/2106.08295",
            key="nagel2021white",
        ),
        role="comparator",
        unit="bit",
        adaptivity="static",
        budgets=("bits",),
        nearest="squeezellm",
        differs="an even grid for each group, without regard to what an error costs",
        deviations=("weights alone are rounded, activations stay as they are",),
    )

    group: int = Field(128, ge=0)
    """Consecutive inputs of a row that share a scale; 0: the whole row."""
    symmetric: bool = False
    """Whether the grid lies evenly around zero, without a zero point."""

    def check_budget(self, budget: Budget | None) -> None:
        """Whether this method takes that budget.

        Raises:
            InputError: One bit has no grid, and between 8 bits and 16 nothing is stored.
        """
        super().check_budget(budget)
        if budget is not None and not (2 <= budget.number <= 8 or budget.number >= DENSE_BITS):
            raise InputError(f"{self.card.id} has no grid of {budget.label}", "it takes 2 to 8 bits; 16 is dense")

    def encode(self, name: str, weight: torch.Tensor, state: Any, budget: Budget) -> torch.Tensor:
        """See `StoringAdapter.encode`."""
        from sparsebench.adapters.pruning._quantise import on_grid

        return on_grid(weight, int(budget.number), self.group, self.symmetric)

    def stored(self, rows: int, columns: int, budget: Budget) -> Stored:
        """See `StoringAdapter.stored`."""
        from sparsebench.adapters.pruning._quantise import grid_bits
        from sparsebench.systems.weights import Stored

        size = rows * columns
        return Stored(size, size, grid_bits(rows, columns, int(budget.number), self.group, self.symmetric))
