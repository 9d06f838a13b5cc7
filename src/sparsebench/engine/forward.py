"""Running a tree of nodes through the model, chunk by chunk, with logits only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebench.engine.attention import Geometry, engaged
from sparsebench.engine.flow import MASK_ELEMENTS, Flow, KeyValueStore, Lanes, PackedRows, RowBatch
from sparsebench.engine.reuse import Prefills, name_of
from sparsebench.engine.trie import Node

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

PADDING = 1.3
"""Rows share a batch as long as padding them adds no more than this factor of queries x keys."""
SMALL = {"cpu": 2**12, "cuda": 2**22}
"""Rows x queries x keys up to which padding is cheaper than one more call, by device."""


@dataclass
class Chunk:
    """Nodes of one forward pass, and the places of its flat tokens whose logits are wanted.

    Attributes:
        nodes: Indices into the tree.
        wanted: For each node of `nodes` the offsets of its tokens whose logits are wanted.
    """

    nodes: list[int]
    wanted: list[np.ndarray] = field(default_factory=list)


OnLogits = Callable[[list[tuple[int, int]], torch.Tensor], None]
"""Called for each chunk with k places (a node's index and an offset in it) and their logits [k, vocabulary]."""


class TreeRun:
    """One tree of nodes over one model.

    Args:
        system: The model, with whatever is attached to it.
        nodes: The tree, parents before children.
        wanted: For each node the offsets whose logits are wanted, or None.
        keep_leaves: Sequences whose keys must stay after their nodes have run (generation goes on from them).
    """

    def __init__(
        self,
        system: CausalLM,
        nodes: list[Node],
        wanted: Sequence[np.ndarray | None],
        keep_leaves: bool = False,
    ) -> None:
        self.system = system
        self.nodes = nodes
        self.wanted = wanted
        self.keep_leaves = keep_leaves
        self.store = KeyValueStore(2 * system.batch_tokens)

    def chunks(self) -> Iterator[list[int]]:
        """Nodes in depth-first order, as many as the token budget allows, at least one."""
        chunk: list[int] = []
        tokens = 0
        for index, node in enumerate(self.nodes):
            if chunk and tokens + len(node.tokens) > self.system.batch_tokens:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(index)
            tokens += len(node.tokens)
        if chunk:
            yield chunk

    def run(self, on_logits: OnLogits) -> None:
        """Run every chunk."""
        for chunk in self.chunks():
            self.run_chunk(chunk, on_logits)

    def run_chunk(self, chunk: list[int], on_logits: OnLogits) -> None:
        """One forward pass, or two where prefill can be kept; keys that nobody needs any more are given back."""
        prefill = [i for i in chunk if not self.nodes[i].decode]
        kept = Prefills.of(self.system)
        if kept is not None and prefill and all(self.wanted[i] is None for i in prefill):
            self._prefill(kept, prefill)
            decode = [i for i in chunk if self.nodes[i].decode]
            if decode:
                self._forward(decode, on_logits)
        else:
            self._forward(chunk, on_logits)
        self._release(chunk)

    def _prefill(self, kept: Prefills, chunk: list[int]) -> None:
        """Run nodes of which no logits are wanted, unless they ran before."""
        nodes, counters = [self.nodes[i] for i in chunk], self.system.counters
        name = name_of([[self.nodes[i].tokens for i in self.path(index)] for index in chunk])
        found = kept.get(name)
        if found is None:
            before = dict(counters.sums)
            self._forward(chunk, lambda places, logits: None, keep=True)
            if not any(node.state for node in nodes):  # what a method remembers is its own
                counts = {key: total - before.get(key, 0.0) for key, total in counters.sums.items()}
                kept.keep(name, self.store, self._slots(nodes), counts)
            return
        for node in nodes:
            node.slots = np.asarray(self.store.take(len(node.tokens)))
        slots = self._slots(nodes)
        for layer, (key, value) in found.layers.items():
            self.store.write(layer, slots, key, value)
        for count, amount in found.counts.items():
            counters.add(count, amount)

    def _slots(self, nodes: list[Node]) -> torch.Tensor:
        slots = np.concatenate([node.slots for node in nodes if node.slots is not None])
        return torch.from_numpy(slots).to(self.system.device)

    def _forward(self, chunk: list[int], on_logits: OnLogits, keep: bool = False) -> None:
        system, nodes = self.system, [self.nodes[i] for i in chunk]
        device = system.device
        sizes = [len(node.tokens) for node in nodes]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        for node in nodes:
            node.slots = np.asarray(self.store.take(len(node.tokens)))
        ids = torch.from_numpy(np.concatenate([node.tokens for node in nodes])).to(device)
        positions = torch.from_numpy(np.concatenate([np.arange(node.start, node.end) for node in nodes])).to(device)
        phase = np.concatenate([np.full(len(node.tokens), node.decode) for node in nodes])
        prompts = np.concatenate([np.full(len(node.tokens), node.prompt) for node in nodes])
        batches = self._batches(nodes, starts)
        # Rows that do not lie in one piece in the chunk are read from the store, even where nothing is shared.
        keep = keep or self.keep_leaves or any(node.parent >= 0 or node.uses for node in nodes)
        keep = keep or any(batch.span is None for batch in batches)
        rows = PackedRows(batches, self.store, self._slots(nodes), keep)
        flow = Flow(
            system.policy, rows, torch.from_numpy(phase).to(device), positions, torch.from_numpy(prompts).to(device)
        )
        offsets = [self.wanted[i] for i in chunk]
        places = [start + offset for start, offset in zip(starts, offsets, strict=False) if offset is not None]
        scored = torch.from_numpy(np.concatenate(places) if places else np.zeros(0, dtype=np.int64)).to(device)
        system.count_tokens(nodes)
        for node, offset in zip(nodes, offsets, strict=True):
            if offset is not None:
                system.counters.add("decode.scored" if node.decode else "prefill.scored", len(offset))
        logits = forward(system, flow, ids, positions, scored)
        if len(scored):
            each = zip(chunk, offsets, strict=True)
            on_logits([(i, int(o)) for i, offset in each if offset is not None for o in offset], logits)

    def path(self, index: int) -> list[int]:
        """Nodes from the root to `index`."""
        found = []
        while index >= 0:
            found.append(index)
            index = self.nodes[index].parent
        return found[::-1]

    def slots_of(self, index: int) -> np.ndarray:
        """Slots of all keys that a sequence ending in this node sees, in order."""
        parts = [self.nodes[i].slots for i in self.path(index)]
        return np.concatenate([part for part in parts if part is not None])

    def release(self, index: int) -> None:
        """A sequence that ended in this node needs its keys no more."""
        node = self.nodes[index]
        while node.uses <= 0 and node.slots is not None:
            self.store.give_back(node.slots.tolist())
            node.slots, node.state = None, {}
            if node.parent < 0:
                return
            node = self.nodes[node.parent]
            node.uses -= 1

    def _release(self, chunk: list[int]) -> None:
        for index in chunk:
            node = self.nodes[index]
            if node.uses == 0 and not (self.keep_leaves and node.sequences):
                self.release(index)

    def _batches(self, nodes: list[Node], starts: np.ndarray) -> list[RowBatch]:
        rows = []
        for node, start in zip(nodes, starts, strict=False):
            rows.append((self._depth_in_decode(node), node.start == 0, len(node.tokens), node.end, int(start), node))
        rows.sort(key=lambda row: row[:5])
        batches: list[RowBatch] = []
        group: list[tuple[int, bool, int, int, int, Node]] = []
        small, most = (x.get(self.system.device.type, x["cpu"]) for x in (SMALL, MASK_ELEMENTS))
        real = queries = keys = 0
        for row in rows:
            real, queries, keys = real + row[2] * row[3], max(queries, row[2]), max(keys, row[3])
            padded = (len(group) + 1) * queries * keys
            fits = padded <= max(PADDING * real, small)
            if group and not (group[0][:2] == row[:2] and fits and padded <= most):
                batches.append(self._batch(group))
                group, real, queries, keys = [], row[2] * row[3], row[2], row[3]
            group.append(row)
        if group:
            batches.append(self._batch(group))
        return batches

    def _depth_in_decode(self, node: Node) -> int:
        """0 in prefill; in decode 1 for the first node of a sequence, 2 for its child and so on.

        Prefill is attended before decode and parents before children: what a method remembers of a sequence is there.
        """
        count = 0
        while node.decode:
            count += 1
            if node.parent < 0:
                break
            node = self.nodes[node.parent]
        return count

    def _batch(self, group: list[tuple[int, bool, int, int, int, Node]]) -> RowBatch:
        device = self.system.device
        queries, keys = max(row[2] for row in group), max(row[3] for row in group)
        tokens = np.zeros((len(group), queries), dtype=np.int64)
        slots = np.zeros((len(group), keys), dtype=np.int64)
        positions = np.full((len(group), queries), -1, dtype=np.int64)
        for i, (_, _, count, end, start, node) in enumerate(group):
            tokens[i, :count] = np.arange(start, start + count)
            positions[i, :count] = np.arange(node.start, node.end)
            path = self._path_slots(node)
            slots[i, :end] = path
            slots[i, end:] = path[0]
        aligned = group[0][1]
        even = aligned and all(row[2] == queries for row in group)
        consecutive = all(a[4] + a[2] == b[4] for a, b in pairwise(group))
        span = (group[0][4], group[-1][4] + group[-1][2]) if even and consecutive else None
        lengths = np.array([row[3] for row in group])
        placed = (torch.from_numpy(positions).to(device), torch.from_numpy(lengths).to(device))
        return RowBatch(
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(slots).to(device),
            *placed,
            group[0][0] > 0,
            aligned,
            span,
            [self._states(row[5]) for row in group],
            known=Geometry(positions, lengths, placed),
        )

    def _path_slots(self, node: Node) -> np.ndarray:
        parts = [node.slots]
        while node.parent >= 0:
            node = self.nodes[node.parent]
            parts.append(node.slots)
        return np.concatenate([part for part in parts[::-1] if part is not None])

    def _states(self, node: Node) -> list[dict[object, object]]:
        states = [node.state]
        while node.parent >= 0:
            node = self.nodes[node.parent]
            states.append(node.state)
        return states[::-1]


def forward(
    system: CausalLM, flow: Flow, ids: torch.Tensor, positions: torch.Tensor, scored: torch.Tensor
) -> torch.Tensor:
    """One pass over flat tokens; logits [scored, vocabulary] in the model's dtype.

    Args:
        system: The model.
        flow: Phases and rows of the tokens.
        ids: Token ids, [tokens].
        positions: Position of each in its sequence, [tokens].
        scored: Flat places whose logits are wanted, [scored].
    """
    previous, system.flow = system.flow, flow
    try:
        with torch.inference_mode(), engaged(system.model, flow):
            out = system.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=scored
            )
    finally:
        system.flow = previous
    logits: torch.Tensor = out.logits[0]
    # Not every model heeds what it is asked for; some give the logits of all tokens.
    return logits if len(logits) == len(scored) else logits[scored]


def step(
    system: CausalLM, lanes: Lanes, ids: torch.Tensor, lengths: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """One decode step for the active lanes; logits [lanes, vocabulary]."""
    positions = lengths - 1
    flow = Flow(system.policy, lanes, torch.ones_like(ids, dtype=torch.bool), positions, prompts)
    return forward(system, flow, ids, positions, torch.arange(len(ids), device=ids.device))
