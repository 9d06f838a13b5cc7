"""Random activations: the floor that every score must clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.activation.base import ActivationAdapter, Scope, Site, dropped
from sparsebench.adapters.card import MethodCard
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    import torch

ORDERS = 64
"""Random orders of the channels of a site; a token has one by its position."""


class RandomActivations(ActivationAdapter):
    """Channels go in a random order that depends on the site and the token's position, not on budget or batch."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-activations",
        family="activation",
        title="Random activations",
        summary="Of the inputs of all linear layers random ones become zero, equally many of each token; larger "
        "budgets drop what smaller ones drop, and more.",
        role="control",
        unit="channel",
        modes=("simulated", "executed"),
        nearest="teal",
        differs="looks at no activation",
    )
    shared: ClassVar[bool] = True

    rule: Literal["topk"] = "topk"
    scope: Scope = "all"
    seed: int = 0

    def state_of(self, site: Site) -> torch.Tensor:
        """The place of each channel in each order, int16 or int32 [orders, channels]."""
        import torch

        generator = torch.Generator().manual_seed(seed_of(self.card.id, self.seed, site.name))
        order = torch.rand(ORDERS, site.channels, generator=generator).argsort(dim=1).argsort(dim=1)
        device = next(site.module.parameters()).device
        return order.to(device, torch.int16 if site.channels < 1 << 15 else torch.int32)

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        # Multiplicative hashing: neighbouring positions have unrelated orders.
        ranks: torch.Tensor = state[(positions * 0x9E3779B1 >> 16) % ORDERS]
        return ranks

    def drop(
        self, x: torch.Tensor, state: Any, positions: torch.Tensor, sparsity: float, threshold: float
    ) -> torch.Tensor:
        """See `ActivationAdapter.drop`; scores are ranks, and nothing need be sorted."""
        return self.score(x, state, positions) < dropped(sparsity, x.shape[1])
