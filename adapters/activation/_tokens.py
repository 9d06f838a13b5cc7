"""Phase and place of the tokens of one forward pass, and which of them a scope holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.adapters.activation.base import Scope
from sparsebench.engine.flow import Lanes

if TYPE_CHECKING:
    from sparsebench.engine.flow import Flow


@dataclass(frozen=True)
class Tokens:
    """The tokens of a forward pass, flat, in the order in which layers see them.

    Attributes:
        decode: Whether each runs in the decode phase, bool [tokens].
        positions: Position of each in its sequence, int64 [tokens].
        prompts: Length of the prefill part of its sequence, int64 [tokens].
        scope: Which of them are to be made sparse.
        sequences: How many sequences, equally long, lie one after another; 0 in packed rows, which tell it themselves.
        step: Whether they are a step of decode: the next token of each of some sequences. The host knows it, so that
            such a pass asks the device for nothing.
    """

    decode: torch.Tensor
    positions: torch.Tensor
    prompts: torch.Tensor
    scope: Scope
    sequences: int = 0
    step: bool = False

    @classmethod
    def of_flow(cls, flow: Flow, scope: Scope) -> Tokens | None:
        """Those of a pass of the engine; None where the flow does not tell them."""
        if flow.decode is None or flow.positions is None or flow.prompts is None:
            return None
        if flow.rows is not None:
            return cls(flow.decode, flow.positions, flow.prompts, scope, step=isinstance(flow.rows, Lanes))
        sequences = 1 + int((flow.positions.diff() != 1).sum())
        step = sequences == len(flow.decode) and bool(flow.decode.all())
        return cls(flow.decode, flow.positions, flow.prompts, scope, sequences, step)

    @classmethod
    def of_call(cls, positions: torch.Tensor, scope: Scope) -> Tokens:
        """Those of a plain call of the model: one position for each sequence is decode, several are a prompt.

        Args:
            positions: [sequences, tokens].
            scope: Which tokens are to be made sparse.
        """
        step = positions.shape[1] == 1
        decode = torch.full(positions.shape, step, device=positions.device)
        prompts = (positions.amax(dim=1, keepdim=True) + 1).expand_as(positions)
        return cls(decode.flatten(), positions.flatten(), prompts.flatten(), scope, len(positions), step)

    def to(self, device: torch.device) -> Tokens:
        """A copy for layers on another device."""
        decode, positions, prompts = (x.to(device) for x in (self.decode, self.positions, self.prompts))
        return replace(self, decode=decode, positions=positions, prompts=prompts)

    def at(self, places: torch.Tensor) -> Tokens:
        """Those at some places alone, int64 [tokens], as an expert is fed them."""
        return Tokens(self.decode[places], self.positions[places], self.prompts[places], self.scope)

    def __len__(self) -> int:
        return len(self.decode)

    @cached_property
    def chosen(self) -> torch.Tensor:
        """Which tokens are in the scope, bool [tokens]."""
        if self.scope == "all":
            return torch.ones_like(self.decode)
        if self.scope == "decode":
            return self.decode
        if self.scope == "prefill":
            return ~self.decode
        last = self.prompts // 2 if self.scope == "last-half" else self.prompts * 99 // 100
        return self.decode | (self.positions >= self.prompts - last)

    @cached_property
    def everyone(self) -> bool:
        """Whether all tokens are in the scope."""
        if self.step:
            return self.scope != "prefill"
        return bool(self.chosen.all())

    @cached_property
    def anyone(self) -> bool:
        """Whether some token is in the scope."""
        if self.step:
            return self.everyone
        return bool(self.chosen.any())

    @cached_property
    def rows(self) -> dict[str, torch.Tensor]:
        """For each phase that occurs in the scope, the places of its tokens there, int64 [tokens of the phase]."""
        if self.step:
            return {"decode": torch.arange(len(self), device=self.decode.device)} if self.everyone else {}
        phases = {"prefill": self.chosen & ~self.decode, "decode": self.chosen & self.decode}
        places = {phase: mask.nonzero()[:, 0] for phase, mask in phases.items()}
        return {phase: rows for phase, rows in places.items() if len(rows)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Tokens of each phase that occurs, in the scope or not."""
        decode = len(self) if self.step else int(self.decode.sum())
        return {p: n for p, n in (("prefill", len(self) - decode), ("decode", decode)) if n}


def positions_of_call(ids: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Positions of the tokens of a plain call, [sequences, tokens]: as given, or counted on from what is cached.

    Args:
        ids: Token ids or embeddings, [sequences, tokens, ...].
        options: The call's other arguments.
    """
    given = options.get("position_ids")
    if isinstance(given, torch.Tensor) and given.dim() == 2:
        return given.expand(ids.shape[0], -1)
    cache = options.get("past_key_values")
    start = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
    return torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
