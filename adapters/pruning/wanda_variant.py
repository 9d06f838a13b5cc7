"""Wanda's variant: rows lose as much of their score as one another, not as many weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.pruning.base import Layer
from sparsebench.adapters.pruning.wanda import Wanda

if TYPE_CHECKING:
    import torch


class WandaVariant(Wanda):
    """A weight's worth is the share of its row's score that it and all lesser ones hold together."""

    card: ClassVar[MethodCard] = MethodCard(
        id="wanda-variant",
        family="pruning",
        title="Wanda (variant)",
        summary="Of each row the weights go that hold the least share alpha of its |W| ||X|| together, alpha being the "
        "same in all rows of a layer.",
        paper=Wanda.card.paper,
        unit="weight",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="wanda",
        differs="rows in which the score is concentrated lose more weights",
        deviations=(
            "alpha is what meets the sparsity exactly; the released code stops its bisection within 0.001",
            *Wanda.card.deviations,
        ),
    )

    compare_group: Literal["layer"] = "layer"

    def score(self, layer: Layer) -> torch.Tensor:
        """See `PruningAdapter.score`; shares are summed in float64."""
        import torch

        values, order = super().score(layer).double().sort(dim=1, stable=True)
        shares = values.cumsum(dim=1) / values.sum(dim=1, keepdim=True).clamp(min=1e-300)
        return torch.empty_like(shares).scatter_(1, order, shares).float()
