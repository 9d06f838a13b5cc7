"""The weights that pruning works on: counting their zeros, replacing them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparsebench.errors import InputError
from sparsebench.systems.experts import many_in_one

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

    def scaled(self, share: float) -> Stored:
        """That share of it."""
        bits = {name: share * count for name, count in self.bits.items()}
        return Stored(round(share * self.weights), round(share * self.kept), bits)


@dataclass(frozen=True)
class WeightSparsity:
    """Zeros counted in the weights of a model as they are.

    Attributes:
        prunable: Weights of the linear layers of the decoder blocks, with those of experts; neither embeddings nor LM
            head are among them.
        zeros: Exact zeros among those; of a weight that is stored otherwise, the multiply-adds that its form saves.
        total: All parameters of the model, tied ones once.
        stored: Weights that are stored otherwise than entry by entry.
        active: The same of the weights that run for a token, on average over experts; None where all of them do, and
            where it is not known which.
    """

    prunable: int
    zeros: int
    total: int
    stored: tuple[Stored, ...] = ()
    active: WeightSparsity | None = None

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
    sites, beyond = prunable(system), out_of_reach(system)
    sizes = [site.weight.numel() for site in sites]
    found = iter(_entries([*(s.weight for s in sites if s.name not in system.stored), *beyond]))
    kept = [stored.kept if (stored := system.stored.get(site.name)) is not None else next(found) for site in sites]
    zeros = [size - rest for size, rest in zip(sizes, kept, strict=True)]
    whole = sum(sizes) + sum(experts.numel() for experts in beyond)
    gone = sum(zeros) + sum(experts.numel() - rest for experts, rest in zip(beyond, found, strict=True))
    total = sum(parameter.numel() for parameter in system.model.parameters())
    active = _active(system, sites, sizes, zeros) if any(site.expert is not None for site in sites) else None
    return WeightSparsity(whole, gone, total, tuple(system.stored.values()), active)


def _entries(weights: Iterable[torch.Tensor]) -> list[int]:
    """Entries of each that are not zero; a device is waited for once."""
    counts = [torch.count_nonzero(weight) for weight in weights]
    return torch.stack([count.to(counts[0].device) for count in counts]).tolist() if counts else []


def _active(
    system: CausalLM, sites: Sequence[LinearSite], sizes: Sequence[int], zeros: Sequence[int]
) -> WeightSparsity | None:
    from sparsebench.cost import active_share

    try:
        shares = [active_share(system, site) for site in sites]
    except InputError:
        return None
    size, gone = (round(sum(s * n for s, n in zip(shares, counts, strict=True))) for counts in (sizes, zeros))
    forms = ((share, system.stored.get(site.name)) for share, site in zip(shares, sites, strict=True))
    return WeightSparsity(size, gone, size, tuple(form.scaled(share) for share, form in forms if form is not None))


def prunable(system: CausalLM) -> list[LinearSite]:
    """The linear layers of the decoder blocks and projections of experts; of several that share a weight, the first."""
    return list({(id(site.owner), site.expert): site for site in reversed(system.linears)}.values())[::-1]


def out_of_reach(system: CausalLM) -> list[torch.nn.Parameter]:
    """Tensors of matrices of several experts or heads in a form that is not known; no method reaches them."""
    known = {id(site.owner) for site in system.linears}
    modules = (module for block in system.blocks for module in block.modules())
    found = (parameter for module in modules for parameter in many_in_one(module) if id(parameter) not in known)
    return list({id(parameter): parameter for parameter in found}.values())


def names_of(system: CausalLM, parameters: Sequence[torch.nn.Parameter]) -> str:
    """The first of these parameters by its name in the model, and how many there are beside it."""
    first = next(name for name, parameter in system.model.named_parameters() if parameter is parameters[0])
    return repr(first) if len(parameters) == 1 else f"{first!r} and {len(parameters) - 1} more"


def put(site: LinearSite, weight: torch.Tensor) -> None:
    """Give a layer another weight, [out, in]; its parameter stays, so whatever is tied to it follows.

    A layer of its own has other memory after it. An expert's projection is written to where it lies, so that views of
    it change with it: within `restoring` the originals are safe.
    """
    own = site.owner
    if site.expert is not None:
        site.part(own.data).copy_(weight)
        return
    own.data = (weight.T if site.transposed else weight).to(own.dtype).contiguous()


@contextmanager
def restoring(sites: Sequence[LinearSite]) -> Iterator[None]:
    """Within the context layers may be `put` other weights; after it each has the memory that it had before."""
    owners = list({id(site.owner): site.owner for site in sites}.values())
    shared = {id(site.owner) for site in sites if site.expert is not None}
    originals = [owner.data for owner in owners]
    try:
        for owner in owners:
            if id(owner) in shared:
                owner.data = owner.data.clone()
        yield
    finally:
        for owner, original in zip(owners, originals, strict=True):
            owner.data = original
