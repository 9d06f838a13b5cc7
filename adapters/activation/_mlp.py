"""MLPs of any architecture: where neurons become active, and which projections read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparsebench.errors import InputError
from sparsebench.systems.weights import names_of, out_of_reach

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

NAMES = re.compile("gelu|elu$|relu|silu|swish|mish|tanh|sigmoid|activation", re.IGNORECASE)
"""Names of the classes of activation functions in torch and transformers."""


@dataclass(frozen=True)
class Mlp:
    """One MLP of a decoder block.

    Attributes:
        name: Name of the activation function's module.
        activation: That module; it gives one number for each neuron.
        down: The projection that reads the neurons.
        gated: Multiply-adds with which a second projection multiplies a neuron; 0 where the MLP has no gate.
        up: The projections that give the neurons, the gate first.
        multiplying: The projection whose outputs the activations multiply; None where there is none of its own.
    """

    name: str
    activation: torch.nn.Module
    down: LinearSite
    gated: int
    up: tuple[LinearSite, ...]
    multiplying: LinearSite | None = None

    @property
    def neurons(self) -> int:
        """Width of the MLP."""
        return int(self.down.weight.shape[1])

    @property
    def whole(self) -> int:
        """Multiply-adds of a neuron in all projections: what is saved where it is known beforehand to be left out."""
        return int(self.down.weight.shape[0]) + sum(site.weight.numel() for site in self.up) // self.neurons


def mlps(system: CausalLM) -> list[Mlp]:
    """The MLPs of the decoder blocks.

    An MLP is a module that holds an activation function and linear layers of its own. The last of these reads the
    neurons. If two others give as many numbers as there are neurons, or one gives twice as many, the MLP is gated.
    Experts in one tensor are left out: they share one activation function, if they have it as a module at all.
    """
    sites = {id(site.module): site for site in system.linears}
    found = []
    for index, block in enumerate(system.blocks):
        for name, holder in block.named_modules():
            own = dict(holder.named_children())
            linears = [sites[id(child)] for child in own.values() if id(child) in sites]
            functions = [(key, child) for key, child in own.items() if is_activation(child)]
            if len(functions) == 1 and linears:
                key, function = functions[0]
                path = ".".join(part for part in (f"block {index}", name, key) if part)
                found.append(Mlp(path, function, linears[-1], _gate(linears), _up(linears), _multiplying(linears)))
    return found


def required_mlps(system: CausalLM, method: str) -> list[Mlp]:
    """`mlps`, at least one, of a model all of whose MLPs are such.

    Raises:
        InputError: There is none with an activation function that is a module, or there are experts beside them, or
            other matrices that lie in one tensor.
    """
    beyond = out_of_reach(system)
    if beyond and not system.experts:
        raise InputError(
            f"{method} does not look into {names_of(system, beyond)}, matrices in one tensor, of "
            f"{type(system.model).__name__}, which would stay dense"
        )
    if system.experts:
        raise InputError(
            f"{method} does not look into the experts of {type(system.model).__name__}, which would stay dense",
            "teal, wina, r-sparse and random-activations mask what experts are fed",
        )
    found = mlps(system)
    if not found:
        raise InputError(f"{method} finds no MLP with an activation function in {type(system.model).__name__}")
    return found


def is_activation(module: torch.nn.Module) -> bool:
    """Whether a module is an activation function, by its name: some architectures bring their own."""
    return NAMES.search(type(module).__name__) is not None and not list(module.children())


def _up(linears: list[LinearSite]) -> tuple[LinearSite, ...]:
    """The projections that give one or two numbers for each neuron."""
    width = linears[-1].weight.shape[1]
    return tuple(site for site in linears[:-1] if site.weight.shape[0] in (width, 2 * width))


def _multiplying(linears: list[LinearSite]) -> LinearSite | None:
    """The second of two projections that give one number for each neuron."""
    single = [site for site in _up(linears) if site.weight.shape[0] == linears[-1].weight.shape[1]]
    return single[1] if len(single) >= 2 else None


def _gate(linears: list[LinearSite]) -> int:
    """Multiply-adds for each neuron of the projection whose outputs the activations multiply."""
    width = linears[-1].weight.shape[1]
    double = [site for site in linears[:-1] if site.weight.shape[0] == 2 * width]
    own = _multiplying(linears) or (double[0] if double else None)
    return 0 if own is None else int(own.weight.shape[1])
