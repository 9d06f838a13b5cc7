"""How much each decoder block changes what passes through it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.adapters.passes import read

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM


@dataclass
class Influence:
    """Means over tokens of how far a block's output lies from its input.

    Attributes:
        cosine: 1 less the cosine of the two, summed over tokens.
        angle: The angle between them over pi, summed over tokens.
        tokens: Tokens seen.
    """

    cosine: float = 0.0
    angle: float = 0.0
    tokens: int = 0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take tokens in, both [..., hidden]; a token of no length counts as at a right angle."""
        width = before.shape[-1]
        a, b = before.reshape(-1, width).double(), after.reshape(-1, width).double()
        cosine = ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).nan_to_num(0.0).clamp(-1, 1)
        self.cosine += float((1 - cosine).sum())
        self.angle += float((cosine.arccos() / torch.pi).sum())
        self.tokens += len(cosine)


def influences(system: CausalLM, calibration: Calibration) -> list[Influence]:
    """Of each block of the model as it is, in one pass over the text."""
    found = [Influence() for _ in system.blocks]

    def hook_of(influence: Influence) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
            before, after = (
                args[0] if args else options["hidden_states"],
                out[0] if isinstance(out, tuple | list) else out,
            )
            influence.add(before.to(after.device), after)

        return hook

    with ExitStack() as handles:
        for block, influence in zip(system.blocks, found, strict=True):
            handle = block.register_forward_hook(hook_of(influence), with_kwargs=True)
            handles.callback(handle.remove)
        read(system, calibration)
    return found
