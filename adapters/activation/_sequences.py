"""The sequences of a forward pass, what their prompts say of neurons, and which of these they leave out in decode."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn.functional import linear

from sparsebench.adapters.activation._executed import Forward, takes
from sparsebench.adapters.activation._masking import Counted, Masking
from sparsebench.adapters.activation._mlp import Mlp, mlps
from sparsebench.adapters.activation.base import dropped
from sparsebench.adapters.selection import smallest, without
from sparsebench.engine.flow import Lanes, PackedRows
from sparsebench.engine.transfer import Copies, sent
from sparsebench.errors import InputError
from sparsebench.systems.experts import shadowed

if TYPE_CHECKING:
    from sparsebench.adapters.activation._prompt import PromptActivation
    from sparsebench.adapters.activation._tokens import Tokens
    from sparsebench.adapters.activation.base import ActivationState, Site
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

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


@dataclass(frozen=True)
class Part:
    """A layer with some of its outputs or inputs: weight [out, in], and bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Left:
    """Which neurons some sequences leave out at a site.

    Attributes:
        memories: What is remembered of each sequence, by which it is known again.
        sources: The memory that holds each sequence's choice; None: it has no prompt and leaves nothing out.
        gone: The neurons that are left out, bool [sequences, channels].
    """

    memories: list[Memory]
    sources: list[Memory | None]
    gone: torch.Tensor


class PromptMasking(Masking):
    """Sums up what the tokens of prompts say of neurons, and leaves the others out in decode.

    Zeros that a neuron has of its own save only a column of the down projection; they are not counted. Executed, the
    rows and columns of the neurons that stay are gathered once for each prompt, and its sequences decode with those.
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
        self._plain: list[Memory] = []
        self._gone_of: torch.Tensor | None = None
        self._kept: dict[str, Left] = {}
        self._mlps: dict[str, Mlp] = {}
        """Those that are executed, by site."""

    @contextmanager
    def executing(self, state: ActivationState, sites: list[Site]) -> Iterator[None]:
        """See `Masking.executing`: with the MLPs of the neurons that stay.

        Raises:
            InputError: Something other than projections has an entry for each neuron.
        """
        from sparsebench.adapters.pruning._removal import feed_forwards

        whole = {mlp.down.name for mlp in feed_forwards(self.system)}
        own = {mlp.down.name: mlp for mlp in mlps(self.system)}
        self._mlps = {site.name: own[site.name] for site in sites if self.levels[site.name] > 0}
        if missing := sorted(set(self._mlps) - whole):
            raise InputError(
                f"the neurons that {missing[0]} reads cannot be gathered: other parameters have an entry for each",
                "run it with mode: simulated",
            )
        with ExitStack() as contexts:
            for site in sites:
                mlp = self._mlps.get(site.name)
                for layer in (*mlp.up, mlp.down) if mlp else ():
                    contexts.enter_context(shadowed(layer.module, self._forward(site, layer)))
            contexts.callback(self._mlps.clear)
            yield

    def widths(self, site: Site) -> Collection[int]:
        """See `Masking.widths`: those that stay are fewer where they are executed."""
        kept = site.channels - dropped(self.levels[site.name], site.channels)
        return (site.channels, kept) if site.name in self._mlps else (site.channels,)

    def __call__(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        own = self._look(x)
        self._read(site, x.detach().reshape(-1, x.shape[-1]), own)
        return super().__call__(site, x)

    def _look(self, x: torch.Tensor) -> Tokens:
        """The tokens of the running pass on the device of a layer's input, whose rows are known after it."""
        tokens = self.tokens(x)
        if tokens is not self._seen:
            self._seen, self._rows = tokens, {}
            self._begin(tokens.original)
        own = tokens[x.device]
        if x.device not in self._rows:
            self._rows[x.device] = list(self._rows_of(own))
        return own

    def _begin(self, tokens: Tokens) -> None:
        flow = self.system.flow
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
        scores = self.adapter.checked_score(flat[places], self.states[site.name], tokens.positions[places])
        for row, own in zip(rows, torch.split(scores, [len(row.prompt) for row in rows]), strict=True):
            memory = row.memories[-1]
            memory[self, site.name] = memory.get((self, site.name), 0) + own.sum(dim=0)
            for what in ("gone", "gathered"):
                memory.pop((self, site.name, what), None)
        self._kept.pop(site.name, None)

    def _left_out(self, site: Site, rows: list[Row]) -> Left:
        """Which neurons sequences leave out; kept while the same sequences come again."""
        known = self._kept.get(site.name)
        if known is not None and len(known.memories) == len(rows):
            if all(own is row.memories[-1] for own, row in zip(known.memories, rows, strict=True)):
                return known
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
        left = Left([row.memories[-1] for row in rows], [own[-1] if own else None for own in parts], chosen)
        self._kept[site.name] = left
        return left

    def _masked(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        rows = [row for row in self._rows[x.device] if len(row.decode)]
        self._gone_of = None
        if self.levels[site.name] == 0 or not rows or x.shape[-1] != site.channels:
            return x
        flat = x.reshape(-1, x.shape[-1])
        gone = chosen = self._left_out(site, rows).gone
        if not tokens.step:
            gone = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
            owners = np.repeat(np.arange(len(rows)), [len(row.decode) for row in rows])
            gone[torch.cat([row.decode for row in rows])] = chosen[sent(owners, flat.device)]
        self._gone_of = gone
        return without(flat, gone).reshape(x.shape)

    def _counted(self, site: Site, x: torch.Tensor, masked: torch.Tensor, tokens: Tokens) -> dict[str, Counted]:
        if x.shape[-1] != site.channels:  # those that are gone were never computed
            entries = len(tokens) * site.channels
            self.system.counters.add("decode.activation.executed", entries * site.saved)
            return {"decode": (entries, 0, entries - len(tokens) * x.shape[-1])}
        gone = self._gone_of
        return {
            phase: (len(rows) * site.channels, 0, 0 if gone is None else gone[rows].sum())
            for phase, rows in tokens.rows.items()
        }

    def _forward(self, site: Site, layer: LinearSite) -> Forward:
        dense = layer.module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            parts = self._parts(site, layer, x)
            if parts is None:
                whole: torch.Tensor = dense(x)
                return whole
            rows = x.reshape(len(parts), 1, -1)
            out = [linear(row, part.weight, part.bias) for row, part in zip(rows, parts, strict=True)]
            return torch.cat(out).view(*x.shape[:-1], -1)

        return forward

    def _parts(self, site: Site, layer: LinearSite, x: torch.Tensor) -> list[Part] | None:
        """With what of a layer each sequence of the running pass decodes; None where all of it is to run."""
        if not takes(self._look(x)):
            return None
        found = []
        for memory in self._left_out(site, self._rows[x.device]).sources:
            if memory is None:
                return None
            key = (self, site.name, "gathered")
            if key not in memory:
                memory[key] = self._gathered(site, memory[self, site.name, "gone"])
            found.append(memory[key][layer.name])
        return found

    def _gathered(self, site: Site, gone: torch.Tensor) -> dict[str, Part]:
        """The layers of an MLP with the neurons that stay, by name; `gone` is bool [channels]."""
        mlp, kept = self._mlps[site.name], (~gone).nonzero()[:, 0]
        parts = {}
        for layer in mlp.up:
            halves = layer.weight.shape[0] // site.channels
            rows = torch.cat([kept + half * site.channels for half in range(halves)])
            bias = cast(Any, layer.module).bias
            weight = layer.weight.detach().index_select(0, rows)
            parts[layer.name] = Part(weight, None if bias is None else bias.detach()[rows])
        weight = mlp.down.weight.detach().index_select(1, kept).contiguous()
        parts[mlp.down.name] = Part(weight, cast(Any, mlp.down.module).bias)
        size = sum(part.weight.nbytes for part in parts.values())
        self.system.counters.add("decode.activation.gathered_bytes", size)
        return parts
