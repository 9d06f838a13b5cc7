"""Shared prefixes: token sequences as a tree of nodes, each computed once.

Sequences that begin alike share the nodes of their common beginning: few-shot examples across questions, a question
across its answer choices. A node lies in one phase, so that a sparse method acts on exactly the tokens that its phase
has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

MIN_SHARED = 16
"""Tokens that two sequences must share, beyond what their parent has, before a node of their own pays."""


@dataclass
class TokenSequence:
    """One sequence to run.

    Attributes:
        tokens: Token ids, [length].
        prefill: The first `prefill` tokens run in the prefill phase, the others in decode.
    """

    tokens: np.ndarray
    prefill: int


@dataclass
class Node:
    """A run of tokens in one phase, computed once for all sequences below it.

    Attributes:
        tokens: Token ids, [n].
        start: Position of the first of them in its sequence.
        decode: Whether the phase is decode.
        parent: Index of the node before it; -1 for a root.
        prompt: Length of the prefill part of the sequence.
        uses: Children not yet computed; at 0 the node's keys may go.
        sequences: Sequences that end here.
        state: What a method remembers of this node, by layer.
        slots: Where the node's keys lie in the store, [n]; None before it ran.
    """

    tokens: np.ndarray
    start: int
    decode: bool
    parent: int
    prompt: int
    uses: int = 0
    sequences: list[int] = field(default_factory=list)
    state: dict[Any, Any] = field(default_factory=dict)
    slots: np.ndarray | None = None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


def build(sequences: Sequence[TokenSequence], share: bool = True) -> list[Node]:
    """Nodes in depth-first order, parents before children.

    Args:
        sequences: The sequences, none of them empty; equal ones share all of their nodes.
        share: Whether prefixes may be shared. If not, only whole equal prompts are: a method whose result depends on
            the whole prompt sees each prompt as one node.
    """
    coded = [_coded(sequence) for sequence in sequences]
    order = sorted(range(len(sequences)), key=lambda i: coded[i].tobytes())
    shared = [0] * len(order)
    for place in range(1, len(order)):
        here, before = order[place], order[place - 1]
        common = _common(coded[before], coded[here])
        whole = common >= sequences[here].prefill and common >= sequences[before].prefill
        shared[place] = common if share or whole else 0

    nodes: list[Node] = []
    pending = _groups(shared, 0, len(order), depth=0, parent=-1)
    while pending:
        first, last, depth, parent = pending.pop()
        common = min(shared[first + 1 : last]) if last - first > 1 else len(coded[order[first]])
        parent = _append(nodes, sequences[order[first]], depth, common, parent)
        while first < last and len(coded[order[first]]) == common:
            nodes[parent].sequences.append(order[first])
            first += 1
        pending += _groups(shared, first, last, common, parent)
    for node in nodes:
        if node.parent >= 0:
            nodes[node.parent].uses += 1
    return nodes


def _coded(sequence: TokenSequence) -> np.ndarray:
    """Token and phase in one big-endian number, so that bytes sort as sequences do."""
    phase = np.arange(len(sequence.tokens)) >= sequence.prefill
    return (np.asarray(sequence.tokens, dtype=np.int64) * 2 + phase).astype(">u8")


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = np.nonzero(a[:n] != b[:n])[0]
    return int(differs[0]) if len(differs) else n


def _groups(shared: list[int], first: int, last: int, depth: int, parent: int) -> list[tuple[int, int, int, int]]:
    """Cut the sorted range where too little is shared beyond `depth`; last group first, as a stack wants them."""
    if first >= last:
        return []
    cuts = [first, *(i for i in range(first + 1, last) if shared[i] - depth < MIN_SHARED), last]
    return [(a, b, depth, parent) for a, b in pairwise(cuts)][::-1]


def _append(nodes: list[Node], sequence: TokenSequence, start: int, end: int, parent: int) -> int:
    """Append tokens `start` to `end`, one node for each phase; the index of the last node."""
    border = min(max(sequence.prefill, start), end)
    for a, b, decode in ((start, border, False), (border, end, True)):
        if a < b:
            nodes.append(Node(np.asarray(sequence.tokens[a:b], dtype=np.int64), a, decode, parent, sequence.prefill))
            parent = len(nodes) - 1
    return parent
