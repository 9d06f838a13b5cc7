"""Methods that store weights in another form than entry by entry: codes, groups, factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.budget import Budget
from sparsebench.cost import PhaseCosts, Request, active_share, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.systems.causal_lm import CausalLM, LinearSite
    from sparsebench.systems.weights import Stored

DENSE_BITS = 16
"""Bits of a stored value: of a weight that is kept as it is, a scale, a centroid or an outlier."""


class StoringAdapter(Adapter):
    """One method that stores weights in a form of its own. Subclasses set `card`, and write `stored` and `encode`.

    One whose layers depend on one another writes `encoded` in the place of `encode`.
    """

    def encode(self, name: str, weight: torch.Tensor, state: Any, budget: Budget) -> torch.Tensor:
        """What the stored form of a layer's weight decodes to, float32 [out, in]."""
        raise NotImplementedError(f"{type(self).__name__} has neither `encode` nor `encoded`")

    @abstractmethod
    def stored(self, rows: int, columns: int, budget: Budget) -> Stored:
        """What the stored form of a matrix of that size takes."""

    def encoded(
        self, sites: Sequence[LinearSite], state: Any, budget: Budget
    ) -> Iterator[tuple[LinearSite, torch.Tensor, Stored]]:
        """New weights with their storage, layer by layer; layers that stay as they are are left out."""
        for site in sites:
            weight = self.finite(site)
            rows, columns = weight.shape
            yield site, self.encode(site.name, weight, state, budget), self.stored(rows, columns, budget)

    def finite(self, site: LinearSite) -> torch.Tensor:
        """A layer's weight, float32 [out, in].

        Raises:
            InputError: It is no finite number everywhere.
        """
        weight = site.weight.detach().float()
        if not bool(weight.isfinite().all()):
            raise InputError(f"{self.card.id}: {site.name} has weights that are not finite")
        return weight

    def is_dense(self, budget: Budget) -> bool:
        """Whether that budget leaves the model as it is."""
        return budget.number >= DENSE_BITS if budget.kind == "bits" else budget.number == 0

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The model with its weights as they decode; on exit each parameter has its original memory again."""
        from sparsebench.systems.weights import prunable, put, restoring

        self.check_budget(budget)
        refuse_stored(self.card.id, system)
        sites, before = prunable(system), system.stored
        try:
            with restoring(sites):
                if budget is not None and not self.is_dense(budget):
                    system.stored = {}
                    for site, weight, stored in self.encoded(sites, prepared.state, budget):
                        # Zeros of members before this one in a stack still cost nothing, where the form keeps them.
                        spared = int(((site.weight == 0) & (weight == 0)).sum())
                        kept = min(stored.kept, site.weight.numel() - spared)
                        put(site, weight)
                        system.stored[site.name] = replace(stored, kept=kept)
                yield system
        finally:
            system.stored = before

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Multiply-adds and bytes of the stored forms, all layers together."""
        from sparsebench.systems.weights import prunable

        shape = system.shape
        if budget is None or self.is_dense(budget):
            return dense_cost(shape, request)
        sites = prunable(system)
        shares = [active_share(system, site) for site in sites]
        forms = [self.stored(site.weight.shape[0], site.weight.shape[1], budget) for site in sites]
        spared = sum(s * (form.weights - form.kept) for s, form in zip(shares, forms, strict=True))
        each = 8 * shape.bytes_per_weight
        saved = [form.weights - form.total_bits / each for form in forms]
        active = sum(s * weights for s, weights in zip(shares, saved, strict=True))
        return lighter(shape, request, spared, active, sum(saved))


def lighter(shape: Any, request: Request, spared: float, active: float, saved: float) -> PhaseCosts:
    """The dense cost, less what sparse weights spare.

    Args:
        shape: The dense model.
        request: What is asked of it.
        spared: Multiply-adds of a token.
        active: Bytes that are saved of the weights that run for a token, in weights' worth.
        saved: Those that are saved of all weights.
    """
    flops = dense_cost(replace(shape, linear_params=round(shape.linear_params - spared)), request)
    left = {"linear_params": shape.linear_params - active, "stored_params": shape.stored_params - saved}
    read = dense_cost(replace(shape, **{name: round(weights) for name, weights in left.items()}), request)
    return PhaseCosts(
        prefill=replace(flops.prefill, bytes_weights=read.prefill.bytes_weights),
        decode=replace(flops.decode, bytes_weights=read.decode.bytes_weights),
    )


def refuse_stored(method: str, system: CausalLM) -> None:
    """Refuse a model whose weights are stored in a method's own form already.

    Raises:
        InputError: They are.
    """
    if system.stored:
        raise InputError(
            f"{method}: the weights are stored as codes or factors already", "put it before that method in the stack"
        )
