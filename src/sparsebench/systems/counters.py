"""What a system really did: tokens, attention pairs, zeros met. Filled by base classes, never by a method."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class Counters:
    """Sums over everything that ran since the last `reset`.

    Attention pairs are summed over query heads and layers, activation counts are weighted by the parameters that an
    input channel would have multiplied. Ratios are ratios of sums.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)

    def reset(self) -> None:
        """Begin anew."""
        self.sums.clear()

    def add(self, name: str, amount: float) -> None:
        """Add to a named sum."""
        self.sums[name] += amount

    def tokens(self, phase: str, count: int, pairs: int) -> None:
        """Tokens that ran in a phase, and the causal (query, key) pairs one head of one layer has for them."""
        self.sums[f"{phase}.tokens"] += count
        self.sums[f"{phase}.causal_pairs"] += pairs

    def attention(self, phase: str, kept: int, visible: int, union: int, index_flops: float) -> None:
        """One layer's selection.

        Args:
            phase: `prefill` or `decode`.
            kept: Selected pairs, summed over query heads.
            visible: Pairs that dense attention would have read, summed over query heads.
            union: Keys read, union over the query heads of a group, summed over key heads and queries.
            index_flops: Work of estimating and selecting.
        """
        self.sums[f"{phase}.attention.kept"] += kept
        self.sums[f"{phase}.attention.visible"] += visible
        self.sums[f"{phase}.attention.union"] += union
        self.sums[f"{phase}.attention.index_flops"] += index_flops

    def activation(self, phase: str, zeros: float, total: float) -> None:
        """Inputs of a linear layer in scope: zeros and entries, each weighted by the layer's outputs."""
        self.sums[f"{phase}.activation.zeros"] += zeros
        self.sums[f"{phase}.activation.total"] += total

    def ratio(self, part: str, whole: str) -> float | None:
        """One sum over another; None when nothing was counted."""
        total = self.sums.get(whole, 0.0)
        return self.sums.get(part, 0.0) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """All sums, for the record."""
        return {name: (int(v) if float(v).is_integer() else v) for name, v in sorted(self.sums.items())}
