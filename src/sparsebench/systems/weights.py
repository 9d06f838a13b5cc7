"""The weights that pruning works on: counting their zeros, replacing them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


@dataclass(frozen=True)
class WeightSparsity:
    """Zeros counted in the weights of a model as they are.

    Attributes:
        prunable: Weights of the linear layers of the decoder blocks; neither embeddings nor LM head nor experts that
            are stacked in one tensor are among them.
        zeros: Exact zeros among those.
        total: All parameters of the model, tied ones once.
    """

    prunable: int
    zeros: int
    total: int

    @property
    def sparsity(self) -> float:
        """Zeros over prunable weights."""
        return self.zeros / self.prunable if self.prunable else 0.0

    @property
    def sparsity_of_total(self) -> float:
        """The same zeros over all parameters."""
        return self.zeros / self.total if self.total else 0.0


def weight_sparsity(system: CausalLM) -> WeightSparsity:
    """Count the zeros that the weights of a model have now."""
    weights = [owner_of(site) for site in prunable(system)]
    zeros = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in weights)
    total = sum(parameter.numel() for parameter in system.model.parameters())
    return WeightSparsity(sum(weight.numel() for weight in weights), zeros, total)


def prunable(system: CausalLM) -> list[LinearSite]:
    """The linear layers of the decoder blocks; of several that share one weight, the first."""
    return list({id(owner_of(site)): site for site in reversed(system.linears)}.values())[::-1]


def owner_of(site: LinearSite) -> torch.nn.Parameter:
    """The parameter that holds a layer's weight, [in, out] where the layer is transposed."""
    return cast(torch.nn.Parameter, site.module.weight)


def put(site: LinearSite, weight: torch.Tensor) -> None:
    """Give a layer another weight, [out, in]; its parameter stays, so whatever is tied to it follows."""
    own = owner_of(site)
    own.data = (weight.T if site.transposed else weight).to(own.dtype).contiguous()


@contextmanager
def restoring(sites: Sequence[LinearSite]) -> Iterator[None]:
    """Within the context layers may be `put` other weights; after it each has the memory that it had before."""
    owners = [owner_of(site) for site in sites]
    originals = [owner.data for owner in owners]
    try:
        yield
    finally:
        for owner, original in zip(owners, originals, strict=True):
            owner.data = original
