"""The weights that pruning works on: counting their zeros, replacing them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn.modules.conv import _ConvNd

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


@dataclass(frozen=True)
class Stored:
    """How one weight is stored by a method that does not store it entry by entry in 16 bits.

    Attributes:
        weights: Entries of the matrix that it stands for.
        kept: Multiply-adds of one token.
        bits: Everything that has to be stored, by part: codes, scales, indices, values kept apart.
    """

    weights: int
    kept: int
    bits: dict[str, float]

    @property
    def total_bits(self) -> float:
        """Bits of all parts together."""
        return sum(self.bits.values())


@dataclass(frozen=True)
class WeightSparsity:
    """Zeros counted in the weights of a model as they are.

    Attributes:
        prunable: Weights of the linear layers of the decoder blocks, with experts that are stacked in one tensor, which
            no method reaches; neither embeddings nor LM head are among them.
        zeros: Exact zeros among those; of a weight that is stored otherwise, the multiply-adds that its form saves.
        total: All parameters of the model, tied ones once.
        stored: Weights that are stored otherwise than entry by entry.
    """

    prunable: int
    zeros: int
    total: int
    stored: tuple[Stored, ...] = ()

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
    zeros = size = 0
    for site in prunable(system):
        weight, stored = owner_of(site), system.stored.get(site.name)
        kept = stored.kept if stored is not None else int(torch.count_nonzero(weight))
        zeros += weight.numel() - kept
        size += weight.numel()
    for experts in stacked(system):
        zeros += experts.numel() - int(torch.count_nonzero(experts))
        size += experts.numel()
    total = sum(parameter.numel() for parameter in system.model.parameters())
    return WeightSparsity(size, zeros, total, tuple(system.stored.values()))


def prunable(system: CausalLM) -> list[LinearSite]:
    """The linear layers of the decoder blocks; of several that share one weight, the first."""
    return list({id(owner_of(site)): site for site in reversed(system.linears)}.values())[::-1]


def stacked(system: CausalLM) -> list[torch.nn.Parameter]:
    """Weights of experts that lie in one tensor, [experts, ...]: linear maps that are no modules of their own."""
    modules = (module for block in system.blocks for module in block.modules())
    plain = (module for module in modules if not isinstance(module, _ConvNd))
    found = (p for module in plain for p in module.parameters(recurse=False) if p.dim() == 3)
    return list({id(p): p for p in found}.values())


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
