"""Prompts that several cells compute alike: a method that acts in decode alone leaves prefill as it is.

What is kept are keys, values and counts of the nodes of one forward pass, under a name for all that acts in prefill. A
pass is taken from here as a whole or computed as a whole, so that results do not depend on what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from sparsebench.engine.flow import KeyValueStore
    from sparsebench.systems.causal_lm import CausalLM

LIMIT = 2**31
"""Bytes of keys and values that are kept at most on a processor."""
SHARE = 10
"""One of so many parts of a GPU's memory may hold what is kept."""


@dataclass
class KeptPass:
    """One forward pass.

    Attributes:
        layers: Keys and values of each layer, [tokens, kv_heads, dim].
        counts: What the counters rose by.
        size: Bytes of the keys and values.
        turn: When it was last asked for.
    """

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]
    counts: dict[str, float]
    size: int
    turn: int


class Prefills:
    """Passes of one state of a system."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.turn = 0
        self._kept: dict[bytes, KeptPass] = {}

    @classmethod
    def of(cls, system: CausalLM) -> Prefills | None:
        """Those of the system as it is; None where nobody says what acts in prefill."""
        if system.prefill_state is None:
            return None
        kept = system.memory.get("prefills")
        if not isinstance(kept, Prefills) or kept.state != system.prefill_state:
            kept = system.memory["prefills"] = Prefills(system.prefill_state)
        return kept

    def next_turn(self) -> None:
        """Other prompts are about to come, or the same once more."""
        self.turn += 1

    def get(self, name: bytes) -> KeptPass | None:
        """A pass that was kept."""
        found = self._kept.get(name)
        if found is not None:
            found.turn = self.turn
        return found

    def keep(self, name: bytes, store: KeyValueStore, slots: torch.Tensor, counts: dict[str, float]) -> None:
        """Keep a pass whose keys lie in `slots` of the store, if there is room.

        Room is made by what neither these prompts nor those before them asked for. The rest stays: of prompts that come
        again in the same order, and do not all fit, forgetting the oldest first would forget each just before its turn.
        """
        shapes = [x[:1] for layer in store.layers for x in store.layer(layer)]
        size = len(slots) * sum(x.numel() * x.element_size() for x in shapes)
        limit, held = _limit(slots.device), sum(one.size for one in self._kept.values())
        for old in [name for name, one in self._kept.items() if one.turn < self.turn - 1]:
            if held + size <= limit:
                break
            held -= self._kept.pop(old).size
        if held + size > limit:
            return
        layers = {}
        for layer in store.layers:
            key, value = store.layer(layer)
            there = slots.to(key.device)
            layers[layer] = (key[there], value[there])
        self._kept[name] = KeptPass(layers, counts, size, self.turn)


def _limit(device: torch.device) -> int:
    if device.type != "cuda":
        return LIMIT
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


def name_of(paths: list[list[np.ndarray]]) -> bytes:
    """The name of a pass: for each node the tokens of all nodes from the root to itself."""
    digest = blake2b(digest_size=20)
    for path in paths:
        for part in path:
            digest.update(np.int64(len(part)).tobytes() + part.astype(np.int64).tobytes())
        digest.update(b"|")
    return digest.digest()
