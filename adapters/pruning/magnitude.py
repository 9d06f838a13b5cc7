"""Magnitude: small weights go."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.base import CompareGroup, Layer, PruningAdapter

if TYPE_CHECKING:
    import torch


class Magnitude(PruningAdapter):
    """The absolute value of a weight is what it is worth."""

    card: ClassVar[MethodCard] = MethodCard(
        id="magnitude",
        family="pruning",
        title="Magnitude",
        summary="Weights with the smallest absolute value go; no data is read.",
        paper=Paper(
            title="Learning both Weights and Connections for Efficient Neural Networks",
            authors="Song Han and Jeff Pool and John Tran and William J. Dally",
            year=2015,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/1506.02626",
            key="han2015learning",
        ),
        role="comparator",
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        nearest="wanda",
        differs="leaves out the norm of the input that a weight meets",
        deviations=("one shot, without training in between",),
    )

    compare_group: CompareGroup = "layer"

    def score(self, layer: Layer) -> torch.Tensor:
        """See `PruningAdapter.score`."""
        return layer.weight.abs()
