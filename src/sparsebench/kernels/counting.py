"""Where products over active entries count what they met."""

from __future__ import annotations

from typing import Protocol

import torch


class Met(Protocol):
    """Takes the zeros of what a product was given, each as often as one saves a multiply-add."""

    saved: int
    """Multiply-adds that one zero saves."""

    def add(self, zeros: int, before: int) -> None:
        """Take what the host knows: entries that are left out or zero, and those that are zero in any case."""
        ...

    def tallies(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a device adds the same two, times `saved`, float64 without dimensions."""
        ...
