"""Turning the inputs of layers so that the columns of a weight become orthogonal; what a layer gives stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.adapters.activation._attention import attentions
from sparsebench.adapters.activation._mlp import mlps
from sparsebench.adapters.passes import remembered
from sparsebench.errors import InputError
from sparsebench.systems.weights import put, restoring

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


@dataclass(frozen=True)
class Group:
    """Layers that read one input.

    Attributes:
        basis: The layer whose columns become orthogonal.
        layers: All of them, the basis too.
    """

    basis: LinearSite
    layers: tuple[LinearSite, ...]

    @property
    def work(self) -> int:
        """Multiply-adds of turning one token."""
        return int(self.basis.weight.shape[1]) ** 2


def groups(system: CausalLM) -> list[Group]:
    """The inputs of attention, by the keys' columns, and those of MLPs, by the gate's."""
    attending = [Group(own.key, own.inputs) for own in attentions(system)]
    return attending + [Group(mlp.up[0], mlp.up) for mlp in mlps(system) if mlp.up]


def turn_of(weight: torch.Tensor) -> torch.Tensor:
    """An orthogonal matrix V, float64 [in, in], for which W V has orthogonal columns: the right singular vectors."""
    turn: torch.Tensor = torch.linalg.svd(weight.double(), full_matrices=True).Vh.T
    return turn


@contextmanager
def rotated(system: CausalLM) -> Iterator[None]:
    """Within the context the layers of each group have the weight W V and are fed V^T x.

    Raises:
        InputError: The model has experts, each of which would have to turn the inputs in another way.
    """
    if system.experts:
        raise InputError("what experts are fed is not turned", "set transform: false")
    with ExitStack() as contexts:
        found = groups(system)
        turns = remembered(system, "turns", lambda: [turn_of(group.basis.weight.detach()) for group in found])
        contexts.enter_context(restoring([site for group in found for site in group.layers]))
        for group, turn in zip(found, turns, strict=True):
            turning = _turning(turn.to(system.dtype))
            for site in group.layers:
                put(site, site.weight.detach().double() @ turn)
                contexts.callback(site.module.register_forward_pre_hook(turning).remove)
        yield


def _turning(turn: torch.Tensor) -> Callable[..., Any]:
    """A hook that turns the input of a layer; layers that follow one another with the very same input share it."""
    last: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        if not (last and last[0] is args[0]):
            last[:] = [args[0], args[0] @ turn]
        return (last[1], *args[1:])

    return hook
