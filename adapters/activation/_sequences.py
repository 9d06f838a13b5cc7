"""The sequences of a forward pass, what their prompts say of neurons, and which of these they leave out in decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.adapters.activation._masking import Counted, Masking
from sparsebench.adapters.activation.base import dropped
from sparsebench.adapters.selection import smallest, without
from sparsebench.engine.flow import Lanes, PackedRows
from sparsebench.engine.transfer import Copies, sent

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
        places = torch.arange(len(rows.states), device=device)[:, None]
        for place, states in zip(places, rows.states, strict=True):
            yield Row(none, place, states)
        return
    for batch in rows.batches[device]:
        positions = batch.positions.cpu().numpy() if batch.known is None else batch.known.positions
        real = (positions >= 0).sum(axis=1).tolist()
        for tokens, count, states in zip(batch.tokens, real, batch.states, strict=True):
            own = tokens[:count]  # padding stands on the right
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
        self._seen: Copies[Tokens] | None = None
        self._rows: dict[torch.device, list[Row]] = {}
        """Rows of the pass, by the device of the layers that see them."""
        self._steps = False
        """Whether the pass is a step of decode: one token for each sequence, in their order."""
        self._plain: list[Memory] = []
        self._gone: torch.Tensor | None = None
        self._kept: dict[str, tuple[list[Memory], torch.Tensor]] = {}

    def __call__(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        tokens = self.tokens(x)
        if tokens is not self._seen:
            self._seen, self._rows = tokens, {}
            self._begin(tokens.original)
        own = tokens[x.device]
        if x.device not in self._rows:
            self._rows[x.device] = list(self._rows_of(own))
        self._read(site, x.detach().reshape(-1, x.shape[-1]), own)
        return super().__call__(site, x)

    def _begin(self, tokens: Tokens) -> None:
        flow = self.system.flow
        self._steps = flow is not None and isinstance(flow.rows, Lanes)
        if flow is not None and flow.rows is not None:
            return
        if int(tokens.positions[0]) == 0 or len(self._plain) != tokens.sequences:
            self._plain = [{} for _ in range(tokens.sequences)]

    def _rows_of(self, tokens: Tokens) -> Iterator[Row]:
        flow = self.system.flow
        if flow is None or flow.rows is None:
            yield from plain_rows(tokens, self._plain)
        elif isinstance(flow.rows, PackedRows | Lanes):
            yield from packed_rows(flow.rows, tokens.decode.device)

    def _read(self, site: Site, flat: torch.Tensor, tokens: Tokens) -> None:
        rows = [row for row in self._rows[flat.device] if len(row.prompt)]
        if not rows or self.levels[site.name] == 0:
            return
        places = torch.cat([row.prompt for row in rows])
        scores = self.adapter.score(flat[places], self.states[site.name], tokens.positions[places])
        for row, own in zip(rows, torch.split(scores, [len(row.prompt) for row in rows]), strict=True):
            memory = row.memories[-1]
            memory[self, site.name] = memory.get((self, site.name), 0) + own.sum(dim=0)
            memory.pop((self, site.name, "gone"), None)
        self._kept.pop(site.name, None)

    def _left_out(self, site: Site, rows: list[Row]) -> torch.Tensor:
        """Which neurons sequences leave out, bool [rows, channels]; kept while the same sequences come again."""
        known = self._kept.get(site.name)
        if known is not None and len(known[0]) == len(rows):
            if all(own is row.memories[-1] for own, row in zip(known[0], rows, strict=True)):
                return known[1]
        parts = [[memory for memory in row.memories if (self, site.name) in memory] for row in rows]
        key = (self, site.name, "gone")
        new = [own for own in parts if own and key not in own[-1]]
        if new:
            state = self.states[site.name]
            worth = [
                self.adapter.worth(torch.stack([m[self, site.name] for m in own]).sum(dim=0), state) for own in new
            ]
            count = dropped(self.levels[site.name], site.channels)
            for own, gone in zip(new, smallest(torch.stack(worth).float(), count), strict=True):
                own[-1][key] = gone
        none = torch.zeros(site.channels, dtype=torch.bool, device=rows[0].decode.device)
        chosen = torch.stack([own[-1][key] if own else none for own in parts])
        self._kept[site.name] = [row.memories[-1] for row in rows], chosen
        return chosen

    def _masked(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        rows = [row for row in self._rows[x.device] if len(row.decode)]
        self._gone = None
        if self.levels[site.name] == 0 or not rows:
            return x
        flat = x.reshape(-1, x.shape[-1])
        chosen = self._left_out(site, rows)
        if self._steps and len(rows) == len(flat):
            gone = chosen
        else:
            gone = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
            owners = np.repeat(np.arange(len(rows)), [len(row.decode) for row in rows])
            gone[torch.cat([row.decode for row in rows])] = chosen[sent(owners, flat.device)]
        self._gone = gone
        return without(flat, gone).reshape(x.shape)

    def _counted(self, x: torch.Tensor, masked: torch.Tensor, tokens: Tokens) -> dict[str, Counted]:
        channels, none = x.shape[-1], torch.zeros((), dtype=torch.long, device=x.device)
        return {
            phase: (len(rows) * channels, none, none if self._gone is None else self._gone[rows].sum())
            for phase, rows in tokens.rows.items()
        }
