"""Random weights: the floor that every score must clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.pruning.base import Layer, PruningAdapter
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    import torch


class RandomWeights(PruningAdapter):
    """Each weight is worth a random number, drawn without regard to the budget, so that masks nest."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-weights",
        family="pruning",
        title="Random weights",
        summary="Weights drawn at random go; a mask holds those of all smaller budgets.",
        role="control",
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        nearest="magnitude",
        differs="looks neither at weights nor at data",
    )

    seed: int = 0

    def score(self, layer: Layer) -> torch.Tensor:
        """See `PruningAdapter.score`."""
        import torch

        generator = torch.Generator().manual_seed(seed_of(self.card.id, self.seed, layer.name))
        return torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)
