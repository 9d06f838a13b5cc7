"""What the zeros of an input would have given, approximated by the largest singular components of the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.adapters.activation._masking import Masking
from sparsebench.adapters.activation.base import ActivationState

if TYPE_CHECKING:
    from sparsebench.adapters.activation._tokens import Tokens
    from sparsebench.adapters.activation.base import ActivationAdapter, Site
    from sparsebench.systems.causal_lm import CausalLM

Factors = tuple[torch.Tensor, torch.Tensor]


def factors_of(weight: torch.Tensor, rank: int) -> Factors:
    """The best product of that rank, in the weight's dtype.

    Args:
        weight: [out, in].
        rank: At most the smaller of the two.

    Returns:
        [rank, in] and [out, rank], so that x -> second (first x) is nearest to the weight; the components in falling
        order of their singular values.
    """
    if rank == 0:
        return weight.new_empty((0, weight.shape[1])), weight.new_empty((weight.shape[0], 0))
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return (values[:rank, None] * right[:rank]).to(weight.dtype), left[:, :rank].to(weight.dtype)


@dataclass
class LowRankState(ActivationState):
    """What `prepare` leaves.

    Attributes:
        factors: Of the weight of each site, by name.
    """

    factors: dict[str, Factors] = field(default_factory=dict)


class LowRankMasking(Masking):
    """Masks inputs, and adds to a layer's output what the first components of its weight make of the rest.

    Args:
        adapter: The method.
        system: The model.
        sites: Where it masks.
        levels: The share of channels that is left out, by site.
        state: What preparing left.
        ranks: Components, by site.
    """

    def __init__(
        self,
        adapter: ActivationAdapter,
        system: CausalLM,
        sites: list[Site],
        levels: dict[str, float],
        state: LowRankState,
        ranks: dict[str, int],
    ) -> None:
        super().__init__(adapter, system, sites, levels, state)
        self.work = {site.name: ranks[site.name] * (site.channels + site.saved) for site in sites}
        self._layers = {
            site.name: (site.module, state.factors[site.name][0][:rank], state.factors[site.name][1][:, :rank])
            for site in sites
            if (rank := ranks[site.name])
        }
        self._rests: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See `Masking.watching`; outputs are added to as well."""

        def adding(name: str, first: torch.Tensor, second: torch.Tensor) -> Callable[..., torch.Tensor]:
            def hook(module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
                rest = self._rests.pop(name, None)
                return out if rest is None else out + rest @ first.T @ second.T

            return hook

        with super().watching(), ExitStack() as handles:
            for name, (module, first, second) in self._layers.items():
                handles.callback(module.register_forward_hook(adding(name, first, second)).remove)
            try:
                yield
            finally:
                self._rests.clear()

    def _gone(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        gone = super()._gone(site, x, tokens)
        if site.name in self._layers:
            self._rests[site.name] = (x.reshape(gone.shape) * gone).reshape(x.shape)
        return gone
