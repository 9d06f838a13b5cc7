"""From a budget to how many keys each query may read: pure arithmetic.

A share of pairs is met in prefill by one number of keys for the whole prompt: every query reads that many, or all it
sees where that is fewer, so that the first queries are dense, as with any fixed number. In decode it is a share of what
each query sees, whatever stands beside it. A fraction of a key is given to that fraction of the queries, by position
and always to the same ones first: selections at two budgets are nested, and the realised density is the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebench.engine.transfer import sent

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly over [0, 1) whatever their number."""


@dataclass(frozen=True)
class Allowance:
    """How much the queries of one layer may read; one of the three is given.

    Attributes:
        density: Share of the pairs that dense attention has.
        tokens: Keys for each query.
        coverage: Attention mass to keep, by the method's own estimate.
    """

    density: float | None = None
    tokens: int | None = None
    coverage: float | None = None

    @classmethod
    def of(cls, budget: Budget) -> Allowance:
        """What a budget allows."""
        if budget.kind == "sparsity":
            return cls(density=1 - budget.number)
        return cls(tokens=int(budget.number)) if budget.kind == "tokens" else cls(coverage=budget.number)

    def beside_dense(self, layers: int, dense: int) -> Allowance:
        """What is left for the other layers where `dense` of `layers` attend densely.

        A ratio is one over all layers: the others read less than it says. A number of tokens is the layer's own.
        """
        if self.density is None or not 0 < dense < layers:
            return self
        return Allowance(density=max(0.0, (self.density * layers - dense) / (layers - dense)))

    def counts(self, view: AttentionView, pinned: torch.Tensor | None = None) -> torch.Tensor:
        """Keys that each query may read, int64 [rows, queries]; at least 1, at most those it sees, 0 where padded.

        Args:
            view: The rows.
            pinned: Queries that read all they see and are paid for by the others, bool [rows, queries].
        """
        memo, key = view.geometry.memo, ("counts", self, view.window)
        if pinned is None and key in memo:  # the same in all layers
            known: torch.Tensor = memo[key]
            return known
        counts = self._counts(view, pinned)
        if pinned is None:
            memo[key] = counts
        return counts

    def most(self, view: AttentionView) -> int:
        """A number that none of `counts` exceeds where no queries are pinned; the host knows it without asking."""
        longest = int(view.geometry.positions.max(initial=-1)) + 1
        longest = longest if view.window is None else min(longest, view.window)
        if self.tokens is not None:
            wanted = self.tokens
        elif view.decode:
            wanted = int((self.density or 0.0) * longest) + 1
        else:
            wanted = int(max(self._levels(view, [0] * len(view.lengths)))) + 1
        return max(1, min(wanted, longest))

    def _counts(self, view: AttentionView, pinned: torch.Tensor | None) -> torch.Tensor:
        seen = seen_keys(view)
        if self.tokens is not None:
            wanted = torch.full_like(seen, self.tokens)
        elif view.decode:
            # Squares: a share of a growing number of keys beats against an evenly spaced dither.
            wanted = torch.floor((self.density or 0.0) * seen.double() + dither((view.positions + 1) ** 2)).long()
        else:
            levels = self._levels(view, [0] * len(seen) if pinned is None else pinned.sum(dim=1).tolist())
            wanted = torch.floor(sent(levels, seen.device)[:, None] + dither(view.positions)).long()
        if pinned is not None:
            wanted = torch.where(pinned, seen, wanted)
        return torch.minimum(wanted.clamp(min=1), seen)

    def _levels(self, view: AttentionView, pinned: list[int]) -> np.ndarray:
        density = self.density if self.density is not None else 1.0
        spans = zip(row_spans(view), pinned, strict=True)
        return np.array([level(start, count, view.window, density, last) for (start, count), last in spans])


def dither(positions: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) for each position, evenly spread; float64."""
    return torch.frac((positions.double() + 1) * GOLDEN)


def seen_keys(view: AttentionView) -> torch.Tensor:
    """Keys that dense attention lets each query see, int64 [rows, queries]; 0 where padded."""
    seen = view.positions + 1
    return seen if view.window is None else seen.clamp(max=view.window)


def row_spans(view: AttentionView) -> list[tuple[int, int]]:
    """First position and number of the queries of each row; (0, 0) for a row without any."""
    memo = view.geometry.memo
    if "spans" not in memo:
        positions = view.geometry.positions
        counts = (positions >= 0).sum(axis=1)
        starts = np.where(counts > 0, positions.max(axis=1, initial=-1) + 1 - counts, 0)
        memo["spans"] = list(zip(starts.tolist(), counts.tolist(), strict=True))
    spans: list[tuple[int, int]] = memo["spans"]
    return spans


@lru_cache(maxsize=4096)
def level(start: int, count: int, window: int | None, density: float, pinned: int = 0) -> float:
    """The number of keys, a fraction included, with which `count` queries read a share of their pairs.

    Args:
        start: Position of the first query.
        count: Queries.
        window: What a query sees at most.
        density: Share of pairs to read, the pinned ones included.
        pinned: So many queries at the end read all that they see.
    """
    positions = np.arange(start, start + count)
    seen = np.minimum(positions + 1, window or start + count)
    free = seen[: count - pinned]
    if not len(free):
        return 1.0
    target = density * seen.sum() - seen[count - pinned :].sum()
    spread = np.modf((positions[: count - pinned] + 1.0) * GOLDEN)[0]

    def pairs(keys: float) -> int:
        return int(np.minimum(free, np.maximum(np.floor(keys + spread), 1)).sum())

    return largest_within(pairs, target, 0.0, float(free.max()))


def largest_within(pairs: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The largest number in [low, high] whose pairs, which rise with it, are at most half a pair above the target."""
    if pairs(high) <= target + 0.5:
        return high
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (middle, high) if pairs(middle) <= target + 0.5 else (low, middle)
    return low
