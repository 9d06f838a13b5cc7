"""Whole next-token distributions at chosen positions, and how far one model's are from another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebench.engine import trie
from sparsebench.engine.forward import TreeRun
from sparsebench.engine.scoring import LOGITS
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

OnRows = Callable[[list[tuple[int, int]], torch.Tensor], None]
"""Called with (sequence, place among its positions) and the logits there, [rows, vocabulary]."""


@dataclass(frozen=True)
class Asked:
    """A sequence with the positions whose next-token distributions are wanted.

    Attributes:
        tokens: What is fed, [length].
        positions: Positions of fed tokens, rising; the distribution is of the token after each.
        prefill: Tokens that run in the prefill phase; the others run in decode.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    prefill: int


def logits_of(system: CausalLM, sequences: Sequence[Asked], on_rows: OnRows) -> None:
    """Run sequences and hand over their logits as they come.

    Raises:
        InputError: The engine cannot run this model in packed rows.
    """
    if not system.packed:
        raise InputError(f"distributions of {type(system.model).__name__} are not to be had: {system.obstacle}")
    tokens = [
        trie.TokenSequence(np.asarray(s.tokens, dtype=np.int64), min(s.prefill, len(s.tokens))) for s in sequences
    ]
    nodes = trie.build(tokens, share=system.prefix_invariant)
    targets: list[dict[int, list[tuple[int, int]]]] = [{} for _ in nodes]
    for index, node in enumerate(nodes):
        for number in node.sequences:
            at = index
            for place in range(len(sequences[number].positions) - 1, -1, -1):
                position = sequences[number].positions[place]
                while nodes[at].start > position:
                    at = nodes[at].parent
                targets[at].setdefault(position - nodes[at].start, []).append((number, place))
    wanted = [np.array(sorted(t), dtype=np.int64) if t else None for t in targets]

    def collect(places: list[tuple[int, int]], logits: torch.Tensor) -> None:
        owners = [(row, owner) for row, (node, offset) in enumerate(places) for owner in targets[node][offset]]
        on_rows([owner for _, owner in owners], logits[[row for row, _ in owners]])

    TreeRun(system, nodes, wanted).run(collect)


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) at each row, in nats, computed in float32 with sums in float64; `float64 [rows]`.

    Args:
        reference: Logits of the reference, `[rows, vocabulary]`.
        logits: Logits of the other, of the same shape.
    """
    step = max(1, LOGITS.get(logits.device.type, LOGITS["cuda"]) // logits.shape[1])
    found = []
    for first in range(0, len(logits), step):
        p = reference[first : first + step].to(logits.device).float().log_softmax(dim=-1)
        q = logits[first : first + step].float().log_softmax(dim=-1)
        found.append((p.exp() * (p - q)).sum(dim=-1, dtype=torch.float64).clamp_(min=0))
    return torch.cat(found)
