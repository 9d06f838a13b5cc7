"""What a system really did: tokens, attention pairs, zeros met. Filled by base classes, never by a method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

Amount: TypeAlias = "float | torch.Tensor"
"""A number, or a tensor without dimensions that holds one."""


def windowed(phase: str, window: int) -> str:
    """The name of the sum of pairs of layers that see the last `window` keys."""
    return f"{phase}.causal_pairs_within_{window}"


class Counters:
    """Sums over everything that ran since the last `reset`.

    Attention pairs are summed over query heads and layers, activation counts are weighted by the parameters that an
    input channel would have multiplied. Ratios are ratios of sums.

    What was counted on a device stays there until a sum is asked for: fetching a number makes the device wait. It is
    summed in place, so that a kernel may add to it, and one that was recorded adds whenever it is played back.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counted: dict[tuple[str, Any], torch.Tensor] = {}

    @property
    def sums(self) -> dict[str, float]:
        """All sums by name."""
        for (name, _), amount in self._counted.items():
            self._sums[name] += float(amount)
        self._counted.clear()
        return self._sums

    def reset(self) -> None:
        """Begin anew."""
        self._sums.clear()
        self._counted.clear()

    def zero(self) -> None:
        """Begin anew, with the tallies where kernels know them to be."""
        self._sums.clear()
        for amount in self._counted.values():
            amount.zero_()

    def tally(self, name: str, device: torch.device) -> torch.Tensor:
        """What a device has counted towards a sum, float64 without dimensions; what is added to it in place counts."""
        import torch

        if (name, device) not in self._counted:
            with torch.inference_mode(False):  # or it could be changed in that mode only
                self._counted[name, device] = torch.zeros((), dtype=torch.float64, device=device)
        return self._counted[name, device]

    def on_host(self) -> dict[str, float]:
        """What was counted on the host alone, by name."""
        return dict(self._sums)

    def absorb(self, other: Counters) -> None:
        """Add what devices counted for another one."""
        for (name, device), amount in other._counted.items():
            self.tally(name, device).add_(amount)

    def add(self, name: str, amount: Amount) -> None:
        """Add to a named sum."""
        if isinstance(amount, float | Real):  # type checkers do not take a float for a Real
            self._sums[name] += float(amount)
            return
        self.tally(name, amount.device).add_(amount)

    def tokens(self, phase: str, count: int, pairs: int, within: Mapping[int, int] | None = None) -> None:
        """Tokens that ran in a phase, and the (query, key) pairs that one head of one layer has for them.

        Args:
            phase: `prefill` or `decode`.
            count: How many ran.
            pairs: Pairs of a layer that sees all keys before.
            within: Pairs of a layer that sees the last keys only, by how many it sees.
        """
        self.add(f"{phase}.tokens", count)
        self.add(f"{phase}.causal_pairs", pairs)
        for window, number in (within or {}).items():
            self.add(windowed(phase, window), number)

    def attention(self, phase: str, kept: Amount, visible: Amount, union: Amount, index_flops: Amount) -> None:
        """One layer's selection.

        Args:
            phase: `prefill` or `decode`.
            kept: Selected pairs, summed over query heads.
            visible: Pairs that dense attention would have read, summed over query heads.
            union: Keys read, union over the query heads of a group, summed over key heads and queries.
            index_flops: Work of estimating and selecting.
        """
        self.add(f"{phase}.attention.kept", kept)
        self.add(f"{phase}.attention.visible", visible)
        self.add(f"{phase}.attention.union", union)
        self.add(f"{phase}.attention.index_flops", index_flops)

    def activation(self, phase: str, zeros: Amount, total: Amount) -> None:
        """Inputs of a linear layer in scope: zeros and entries, each weighted by the layer's outputs."""
        self.add(f"{phase}.activation.zeros", zeros)
        self.add(f"{phase}.activation.total", total)

    def ratio(self, part: str, whole: str) -> float | None:
        """One sum over another; None when nothing was counted."""
        total = self.sums.get(whole, 0.0)
        return self.sums.get(part, 0.0) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """All sums, for the record."""
        return {name: (int(v) if float(v).is_integer() else v) for name, v in sorted(self.sums.items())}
