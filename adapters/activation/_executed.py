"""Executed: in a step of decode layers read the columns, or give the neurons, that a method keeps, and no others.

A step is one token of each of a few sequences. What is kept is what the mask over dense work would keep: the selection
is the same tensor. Prompts, and steps of more sequences than `ROWS`, stay dense products with masked inputs: among many
tokens hardly a column is left that none of them needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from sparsebench.errors import InputError
from sparsebench.systems.experts import shadowed

if TYPE_CHECKING:
    from sparsebench.adapters.activation._tokens import Tokens
    from sparsebench.adapters.activation.base import Site
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

ROWS = 8
"""Sequences of a step that is executed, at most."""
Forward = Callable[[torch.Tensor], torch.Tensor]


def products_on(device: torch.device) -> Any:
    """The module that multiplies with what is kept, on that type of device.

    Raises:
        InputError: There is none.
    """
    if device.type == "cpu":
        from sparsebench.kernels import gemv_cpu

        return gemv_cpu
    if device.type == "cuda":
        from sparsebench.kernels import gemv_gpu

        return gemv_gpu
    raise InputError(f"no code skips columns on a device of type {device.type}", "run it with mode: simulated")


@dataclass(frozen=True)
class Followers:
    """The layers that skip by the selection of one site.

    Attributes:
        site: The site.
        columns: The layer that reads columns of what is kept.
        rows: The layer that gives kept neurons alone; None where there is none.
    """

    site: Site
    columns: LinearSite
    rows: LinearSite | None = None

    @property
    def layers(self) -> tuple[LinearSite, ...]:
        """Both."""
        return (self.columns,) if self.rows is None else (self.rows, self.columns)


def followers(system: CausalLM, sites: list[Site]) -> list[Followers]:
    """Those of each site: the layer whose input it is, or the projections of the MLP whose neurons it is.

    Raises:
        InputError: What a site leaves out cannot be skipped.
    """
    from sparsebench.adapters.activation._mlp import mlps

    if system.experts:
        raise InputError("experts are not executed: other tokens run in each", "run it with mode: simulated")
    linears = {site.name: site for site in system.linears}
    own = {mlp.name: mlp for mlp in mlps(system)}
    found = []
    for site in sites:
        if not site.output:
            found.append(Followers(site, linears[site.name]))
            continue
        mlp = own[site.name]
        if mlp.gated and mlp.multiplying is None:
            raise InputError(
                f"{site.name} cannot be executed: one matrix gives the gate and what it multiplies, so that nothing of "
                "it is left when the gate is known",
                "run it with mode: simulated",
            )
        found.append(Followers(site, mlp.down, mlp.multiplying))
    for layer in (layer for group in found for layer in group.layers):
        if not isinstance(getattr(layer.module, "weight", None), torch.nn.Parameter):
            raise InputError(f"{layer.name} is no linear layer with a weight of its own", "run it with mode: simulated")
    return found


def columns_of(system: CausalLM, sites: list[Site]) -> dict[str, Any]:
    """The weights that are read by columns, stored so, by name of the layer."""
    return {
        group.columns.name: products_on(group.columns.weight.device).ColumnWeight(group.columns.weight)
        for group in followers(system, sites)
    }


@dataclass(frozen=True)
class Zeros:
    """Where a product counts zeros; see `kernels.counting.Met`."""

    system: CausalLM
    saved: int

    def add(self, zeros: int, before: int) -> None:
        """See `Met`."""
        counters = self.system.counters
        counters.add("decode.activation.zeros", zeros * self.saved)
        counters.add("decode.activation.zeros_before", before * self.saved)

    def tallies(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Met`."""
        counters = self.system.counters
        return (
            counters.tally("decode.activation.zeros", device),
            counters.tally("decode.activation.zeros_before", device),
        )


def takes(tokens: Tokens) -> bool:
    """Whether a pass is a step that is executed."""
    return tokens.step and tokens.everyone and len(tokens) <= ROWS


class Skipping:
    """Multiplies with what was put down for the running pass, and densely where nothing was.

    Args:
        system: The model.
        sites: Where the method selects.
        columns: Weights stored by columns, by name of the layer.
        pass_of: Gives what stands for the running pass, from what a layer sees: the same object in the same pass.
    """

    def __init__(
        self, system: CausalLM, sites: list[Site], columns: dict[str, Any], pass_of: Callable[[torch.Tensor], object]
    ) -> None:
        self.system = system
        self.columns = columns
        self.pass_of = pass_of
        self.followers = {group.site.name: group for group in followers(system, sites)}
        self._put: dict[str, tuple[object, torch.Tensor, Any]] = {}
        self._weights = {
            layer.name: layer.owner.data_ptr() for group in self.followers.values() for layer in group.layers
        }

    def listed(self, x: torch.Tensor, gone: torch.Tensor) -> Any:
        """What is kept of x [tokens, channels] when `gone` is left out."""
        return products_on(x.device).listed(x, gone)

    def put(self, name: str, of: torch.Tensor, found: Any) -> None:
        """What is kept of a site in this pass, for the layers that follow it; `of` is what leaves the site."""
        for layer in self.followers[name].layers:
            self._put[layer.name] = self.pass_of(of), of, found

    def _take(self, layer: LinearSite, x: torch.Tensor) -> tuple[torch.Tensor, Any] | None:
        """What was put down for a layer; None: nothing.

        Raises:
            InputError: It was for another pass, or the layer's weight is not what it was.
        """
        put = self._put.pop(layer.name, None)
        if put is None:
            return None
        if put[0] is not self.pass_of(x):
            raise InputError(
                f"{layer.name} cannot be executed: it runs before the gate that says what it may skip",
                "run it with mode: simulated",
            )
        if layer.owner.data_ptr() != self._weights[layer.name]:
            raise InputError(
                f"the weight of {layer.name} was changed after its columns were stored",
                "in a stack, methods that change weights come before those that are executed",
            )
        return put[1:]

    @contextmanager
    def multiplying(self) -> Iterator[None]:
        """Within the context the layers skip."""
        with ExitStack() as contexts:
            if self.system.device.type == "cpu":
                from sparsebench.kernels import gemv_cpu

                contexts.enter_context(gemv_cpu.threads(torch.get_num_threads()))
            for group in self.followers.values():
                for layer, forward in self._forwards(group):
                    contexts.enter_context(shadowed(layer.module, forward))
            contexts.callback(self._put.clear)
            yield

    def _forwards(self, group: Followers) -> Iterator[tuple[LinearSite, Forward]]:
        met = Zeros(self.system, group.site.saved)
        if group.rows is not None:
            yield group.rows, self._by_rows(group.rows, met)
        yield group.columns, self._by_columns(group.columns, group.site.output, None if group.rows is not None else met)

    def _by_columns(self, layer: LinearSite, neurons: bool, met: Zeros | None) -> Forward:
        columns, bias = self.columns[layer.name], layer.module.bias

        def product(x: torch.Tensor, of: torch.Tensor, found: Any) -> Any:
            if neurons and x.data_ptr() != of.data_ptr():  # what they were multiplied with may be zero too
                found = products_on(x.device).listed(x.reshape(-1, x.shape[-1]))
            return columns.product(found, bias, met)

        return self._skipping(layer, product)

    def _by_rows(self, layer: LinearSite, met: Zeros) -> Forward:
        rows, bias = products_on(layer.weight.device).RowWeight(layer.weight), layer.module.bias

        def product(x: torch.Tensor, of: torch.Tensor, found: Any) -> Any:
            return rows.product(x.reshape(-1, x.shape[-1]), found, bias, met)

        return self._skipping(layer, product)

    def _skipping(self, layer: LinearSite, product: Callable[[torch.Tensor, torch.Tensor, Any], Any]) -> Forward:
        """A layer's `forward`: `product` of its input and what was put down for it; dense where nothing was."""
        dense: Forward = cast(Any, layer.module).forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            taken = self._take(layer, x)
            if taken is None:
                return dense(x)
            out: torch.Tensor = product(x, *taken).view(*x.shape[:-1], -1)
            return out

        return forward
