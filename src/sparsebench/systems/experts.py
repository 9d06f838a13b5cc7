"""Experts of a mixture, whose matrices of one kind lie in one tensor: each matrix as a linear layer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, cast

import torch
from torch.nn.modules.conv import _ConvNd


class ExpertLinear(torch.nn.Module):
    """One projection of one expert.

    It is no child of the model, which multiplies with all experts at once. Within `exposed` it is called in the place
    of that, so that hooks see what the expert is fed, and may feed it something else.

    Attributes:
        experts: The experts among which it is.
        role: Name of the parameter that holds this projection of all experts.
        index: Index of the expert.
        stack: That parameter, [experts, out, in], or [experts, in, out] where the experts are transposed.
        places: Of the tokens that it is being fed, the places in the pass, int64 [tokens].
    """

    stack: torch.nn.Parameter

    def __init__(self, experts: Experts, role: str, index: int) -> None:
        super().__init__()
        self.experts, self.role, self.index = experts, role, index
        self.stack = experts.module.get_parameter(role)
        self.places = torch.zeros(0, dtype=torch.long)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The projection of x [tokens, in], with its bias, [tokens, out]."""
        weight, biases = self.stack[self.index], getattr(self.experts.module, f"{self.role}_bias", None)
        weight = weight.T if self.experts.transposed else weight
        return torch.nn.functional.linear(x, weight, None if biases is None else biases[self.index])


class Experts:
    """The experts of one layer, as transformers 5 stores most of them: a projection into neurons, and one out of them.

    Attributes:
        module: The module that holds and runs them.
        transposed: Whether its parameters are [experts, in, out].
        linears: The projections of each expert, in the order in which it runs them.
    """

    roles: ClassVar[tuple[str, ...]] = ("gate_up_proj", "up_proj", "down_proj")
    """Names that parameters with a projection of all experts may have."""
    placing: ClassVar[bool] = True
    """Whether it is known which tokens an expert is fed (`ExpertLinear.places`)."""

    def __init__(self, module: torch.nn.Module, transposed: bool = False) -> None:
        self.module, self.transposed = module, transposed
        roles = [role for role in self.roles if hasattr(module, role)]
        count = len(module.get_parameter(roles[-1]))
        self.linears = [[ExpertLinear(self, role, index) for role in roles] for index in range(count)]

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the module gives, by one call of each projection that some token is routed to.

        Args:
            hidden: [tokens, in].
            index: The experts of each token, int64 [tokens, experts of a token]; one beyond the last: none.
            weights: What their outputs are multiplied with, [tokens, experts of a token].

        Returns:
            [tokens, in].
        """
        order = index.flatten().argsort(stable=True)
        counts = torch.bincount(index.flatten(), minlength=len(self.linears)).tolist()
        total = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, weights.dtype))
        for expert, own in enumerate(torch.split(order, counts)[: len(self.linears)]):
            if len(own):
                places = own // index.shape[1]
                out = self._run(expert, hidden, places) * weights.flatten()[own, None]
                total.index_add_(0, places, out.to(total.dtype))
        return total.to(hidden.dtype)

    def _run(self, expert: int, hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """What one expert makes of the tokens at these places, [places, in], before it is weighted."""
        into, out = self.linears[expert]
        for linear in (into, out):
            linear.places = places
        found: torch.Tensor = out(self._activated(into(hidden[places])))
        normed: Any = getattr(self.module, "post_expert_norm", None)
        return found if normed is None else normed(found)

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        """The neurons, [tokens, neurons], from what the first projection gives."""
        module: Any = self.module
        found: torch.Tensor = module._apply_gate(x) if getattr(module, "has_gate", True) else module.act_fn(x)
        return found


class WeightedExperts(Experts):
    """The experts of Llama 4: each is fed all tokens, weighted by the router, and those routed elsewhere as zeros."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """What the module gives.

        Args:
            hidden: The tokens as they are for the first expert, for the second ..., [experts x tokens, in].

        Returns:
            [experts x tokens, in].
        """
        each = hidden.view(len(self.linears), -1, hidden.shape[-1])
        total = torch.zeros_like(each)
        for expert, own in enumerate(each):
            places = own.any(dim=1).nonzero()[:, 0]
            if len(places):
                total[expert, places] = self._run(expert, own, places)
        return total.view_as(hidden)

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        module: Any = self.module
        found: torch.Tensor = up * module.act_fn(gate)
        return found


class SortedExperts(Experts):
    """The experts of JetMoE, one projection each: tokens come sorted by expert, and who they were is not known."""

    roles = ("weight",)
    placing = False

    def forward(self, hidden: torch.Tensor, counts: list[int]) -> torch.Tensor:  # type: ignore[override]
        """What the module gives.

        Args:
            hidden: The tokens of the first expert, of the second ..., [all, in].
            counts: Tokens of each expert.

        Returns:
            [all, out].
        """
        each = zip(self.linears, torch.split(hidden, counts), strict=True)
        return torch.cat([linear(own) for (linear,), own in each if len(own)])


def experts_in(module: torch.nn.Module) -> Experts | None:
    """The experts that a module holds in parameters of three dimensions; None where it is of no known form.

    Known are the classes of transformers' experts interface, which have one form, Llama 4's and JetMoE's.
    """
    if type(module).__name__ == "JetMoeParallelExperts":
        return SortedExperts(module)
    last = getattr(module, "down_proj", None)
    if not isinstance(last, torch.nn.Parameter) or last.dim() != 3:
        return None
    if type(module).__name__ == "Llama4TextExperts":
        return WeightedExperts(module, transposed=True)
    return Experts(module, getattr(module, "is_transposed", False)) if hasattr(module, "_apply_gate") else None


def many_in_one(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters of a module that hold matrices of several experts or heads, whatever their form.

    They have three dimensions, [experts, ...], or, in a module that is called so, two: in DBRX's, experts lie below one
    another. Vectors that are stored with further dimensions of 1 (RWKV's) and kernels of convolutions are none.
    """
    if isinstance(module, _ConvNd):
        return []
    called = "expert" in type(module).__name__.lower()
    own = [parameter for name, parameter in module.named_parameters(recurse=False) if not name.endswith("bias")]
    return [p for p in own if (p.dim() == 3 and min(p.shape) > 1) or (called and p.dim() == 2)]


@contextmanager
def exposed(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Within the context those of these modules that are projections of experts are called when the model runs.

    Whatever `experts_implementation` the model has: its experts run one after another meanwhile.
    """
    found = {id(m.experts): m.experts for m in modules if isinstance(m, ExpertLinear)}
    with ExitStack() as forwards:
        for experts in found.values():
            forwards.enter_context(shadowed(experts.module, experts.forward))
        yield


@contextmanager
def shadowed(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context this one module has another `forward`; one that the instance had of its own comes back."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = cast(Any, own)
