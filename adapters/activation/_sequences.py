"""The sequences of a forward pass, what their prompts say of neurons, and which of these they leave out in decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.adapters.activation._masking import Counted, Masking
from sparsebench.adapters.activation.base import dropped
from sparsebench.adapters.selection import smallest
from sparsebench.engine.flow import Lanes, PackedRows

if TYPE_CHECKING:
    from sparsebench.adapters.activation._prompt import PromptActivation
    from sparsebench.adapters.activation._tokens import Tokens
    from sparsebench.adapters.activation.base import ActivationState, Site
    from sparsebench.systems.causal_lm import CausalLM

Memory = dict[Any, Any]


@dataclass(frozen=True)
class Row:
    """The tokens that one sequence has in a forward pass.

    Attributes:
        prompt: Flat places of its prompt's tokens.
        decode: Flat places of the tokens that it decodes.
        memories: What is remembered of the parts of the sequence, outermost first; the last one is its own.
    """

    prompt: torch.Tensor
    decode: torch.Tensor
    memories: list[Memory]


def packed_rows(rows: PackedRows | Lanes, device: torch.device) -> Iterator[Row]:
    """The rows of a pass of the engine."""
    none = torch.zeros(0, dtype=torch.long, device=device)
    if isinstance(rows, Lanes):
        for place, states in enumerate(rows.states):
            yield Row(none, torch.tensor([place], device=device), states)
        return
    for batch in rows.batches:
        for tokens, positions, states in zip(batch.tokens, batch.positions, batch.states, strict=True):
            own = tokens[positions >= 0]
            yield Row(none, own, states) if batch.decode else Row(own, none, states)


def plain_rows(tokens: Tokens, memories: list[Memory]) -> Iterator[Row]:
    """The rows of a plain call of the model, whose sequences lie one after another."""
    decode = tokens.decode.reshape(len(memories), -1)
    first = torch.arange(len(memories), device=decode.device) * decode.shape[1]
    for start, own, memory in zip(first, decode, memories, strict=True):
        yield Row((~own).nonzero()[:, 0] + start, own.nonzero()[:, 0] + start, [memory])


class PromptMasking(Masking):
    """Sums up what the tokens of prompts say of neurons, and leaves the others out in decode.

    Zeros that a neuron has of its own save only a column of the down projection; they are not counted.
    """

    adapter: PromptActivation

    def __init__(
        self,
        adapter: PromptActivation,
        system: CausalLM,
        sites: list[Site],
        levels: dict[str, float],
        state: ActivationState,
    ) -> None:
        super().__init__(adapter, system, sites, levels, state)
        self._seen: Tokens | None = None
        self._rows: list[Row] = []
        self._plain: list[Memory] = []
        self._gone: torch.Tensor | None = None

    def __call__(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        tokens = self.tokens(x)
        if tokens is not self._seen:
            self._seen, self._rows = tokens, list(self._rows_of(tokens))
        self._read(site, x.detach().reshape(-1, x.shape[-1]), tokens)
        return super().__call__(site, x)

    def _rows_of(self, tokens: Tokens) -> Iterator[Row]:
        flow = self.system.flow
        if flow is not None and flow.rows is not None:
            if isinstance(flow.rows, PackedRows | Lanes):
                yield from packed_rows(flow.rows, tokens.decode.device)
            return
        if int(tokens.positions[0]) == 0 or len(self._plain) != tokens.sequences:
            self._plain = [{} for _ in range(tokens.sequences)]
        yield from plain_rows(tokens, self._plain)

    def _read(self, site: Site, flat: torch.Tensor, tokens: Tokens) -> None:
        rows = [row for row in self._rows if len(row.prompt)]
        if not rows or self.levels[site.name] == 0:
            return
        places = torch.cat([row.prompt for row in rows])
        scores = self.adapter.score(flat[places], self.states[site.name], tokens.positions[places])
        for row, own in zip(rows, torch.split(scores, [len(row.prompt) for row in rows]), strict=True):
            memory = row.memories[-1]
            memory[self, site.name] = memory.get((self, site.name), 0) + own.sum(dim=0)
            memory.pop((self, site.name, "gone"), None)

    def _left_out(self, memories: list[Memory], site: Site) -> torch.Tensor:
        """Which neurons a sequence leaves out, bool [channels]."""
        parts = [memory for memory in memories if (self, site.name) in memory]
        if not parts:
            return torch.zeros(site.channels, dtype=torch.bool, device=self.system.device)
        key = (self, site.name, "gone")
        if key not in parts[-1]:
            sums = torch.stack([part[self, site.name] for part in parts]).sum(dim=0)
            worth = self.adapter.worth(sums, self.states[site.name])
            parts[-1][key] = smallest(worth[None].float(), dropped(self.levels[site.name], site.channels))[0]
        gone: torch.Tensor = parts[-1][key]
        return gone

    def _masked(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        rows = [row for row in self._rows if len(row.decode)]
        self._gone = None
        if self.levels[site.name] == 0 or not rows:
            return x
        flat = x.reshape(-1, x.shape[-1])
        gone = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
        owners = np.repeat(np.arange(len(rows)), [len(row.decode) for row in rows])
        chosen = torch.stack([self._left_out(row.memories, site) for row in rows])
        gone[torch.cat([row.decode for row in rows])] = chosen[torch.from_numpy(owners).to(flat.device)]
        self._gone = gone
        return (flat * ~gone).reshape(x.shape)

    def _counted(self, x: torch.Tensor, masked: torch.Tensor, tokens: Tokens) -> dict[str, Counted]:
        channels, none = x.shape[-1], torch.zeros((), dtype=torch.long, device=x.device)
        return {
            phase: (len(rows) * channels, none, none if self._gone is None else self._gone[rows].sum())
            for phase, rows in tokens.rows.items()
        }
