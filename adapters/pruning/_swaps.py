"""DSnoT's arithmetic: trading pruned weights for kept ones until rows have no bias left."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOOK = 5
"""Cycles after which it is looked whether all rows are done: a device would have to wait for the answer each time."""


@dataclass(frozen=True)
class Trade:
    """What a row may trade.

    Attributes:
        shares: What each weight adds to its row's expected output, W_ij E[x_j], float32 [out, in].
        growth: What a pruned weight is worth when it comes back; those that mend most, at little variance, come first.
        worth: What a kept weight is worth; of those that mend, the least goes first.
        cycles: Most swaps of a row.
        threshold: A row whose bias is no larger is done.
        stop_at_sign_change: Whether a row is also done when a swap would turn the sign of its bias.
    """

    shares: torch.Tensor
    growth: torch.Tensor
    worth: torch.Tensor
    cycles: int
    threshold: float
    stop_at_sign_change: bool


def swap(gone: torch.Tensor, trade: Trade, pattern: tuple[int, int] | None = None) -> torch.Tensor:
    """A mask with as many weights gone in each row, or in each group of a pattern, and less bias.

    The bias of a row is the sum over its pruned weights of what they would add to the expected output. In each cycle a
    row takes back one weight that reduces it, and lets one go that reduces it too; in a pattern, the least kept one of
    the same group, whichever way that goes. What came back stays, and what went stays away.

    Args:
        gone: Bool [out, in].
        trade: Values and limits.
        pattern: n:m where groups of m columns keep their count.
    """
    gone = gone.clone()
    bias = torch.where(gone, trade.shares, 0).sum(dim=1)
    start = bias.sign()
    growing = _growing(gone, trade)
    going = _going_in_groups(gone, trade, pattern[1]) if pattern is not None else _going(gone, trade)
    active = torch.ones_like(bias, dtype=torch.bool)
    rows = torch.arange(len(bias), device=bias.device)
    for cycle in range(trade.cycles):
        back, may_grow = growing.next(bias)
        away, may_go = going.next(bias, back)
        after = bias + trade.shares[rows, away] - trade.shares[rows, back]
        active &= (bias.abs() > trade.threshold) & may_grow & may_go
        if trade.stop_at_sign_change:
            active &= after.sign() == start
        if cycle % LOOK == 0 and not bool(active.any()):
            break
        gone[rows, back] &= ~active
        gone[rows, away] |= active
        growing.advance(bias, active)
        going.advance(bias, active, away)
        bias = torch.where(active, after, bias)
    return gone


class _Growing:
    """Pruned weights by how much they mend: from the end for a positive bias, from the beginning for a negative one."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value
        self.order = value.argsort(dim=1, stable=True)
        self.first = torch.zeros(len(value), dtype=torch.long, device=value.device)
        self.last = torch.full_like(self.first, value.shape[1] - 1)

    def next(self, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.where(bias > 0, self.last, self.first).clamp(0, self.order.shape[1] - 1)
        column = self.order.gather(1, place[:, None])
        return column[:, 0], (self.value.gather(1, column)[:, 0] * bias) > 0

    def advance(self, bias: torch.Tensor, active: torch.Tensor) -> None:
        self.last -= (active & (bias > 0)).long()
        self.first += (active & (bias <= 0)).long()


class _Going:
    """Kept weights by worth: those of negative shares for a positive bias, of positive ones for a negative bias."""

    def __init__(self, worth: torch.Tensor, shares: torch.Tensor, kept: torch.Tensor) -> None:
        self.orders = [
            torch.where(kept & sign, worth, torch.inf).sort(dim=1, stable=True) for sign in (shares > 0, shares < 0)
        ]
        self.places = torch.zeros(2, len(worth), dtype=torch.long, device=worth.device)

    def next(self, bias: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns, present = [], []
        for order, place in zip(self.orders, self.places, strict=True):
            at = place.clamp(max=order.values.shape[1] - 1)[:, None]
            columns.append(order.indices.gather(1, at)[:, 0])
            present.append(order.values.gather(1, at)[:, 0].isfinite())
        positive = bias > 0
        return torch.where(positive, columns[1], columns[0]), torch.where(positive, present[1], present[0])

    def advance(self, bias: torch.Tensor, active: torch.Tensor, away: torch.Tensor) -> None:
        self.places[1] += (active & (bias > 0)).long()
        self.places[0] += (active & (bias <= 0)).long()


class _GoingInGroups:
    """The least kept weight of the group whose weight comes back."""

    def __init__(self, worth: torch.Tensor, group: int) -> None:
        self.worth = worth
        self.group = group

    def next(self, bias: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = (back // self.group * self.group)[:, None] + torch.arange(self.group, device=back.device)
        columns = columns.clamp(max=self.worth.shape[1] - 1)  # of a row with nothing to bring back
        least = self.worth.gather(1, columns).min(dim=1)
        return columns.gather(1, least.indices[:, None])[:, 0], least.values.isfinite()

    def advance(self, bias: torch.Tensor, active: torch.Tensor, away: torch.Tensor) -> None:
        rows = torch.arange(len(away), device=away.device)
        self.worth[rows, away] = torch.where(active, torch.inf, self.worth[rows, away])


def _growing(gone: torch.Tensor, trade: Trade) -> _Growing:
    return _Growing(torch.where(gone, trade.growth, 0))


def _going(gone: torch.Tensor, trade: Trade) -> _Going:
    return _Going(trade.worth, trade.shares, ~gone)


def _going_in_groups(gone: torch.Tensor, trade: Trade, group: int) -> _GoingInGroups:
    whole = gone.shape[1] // group * group
    worth = torch.where(gone, torch.inf, trade.worth)
    worth[:, whole:] = torch.inf
    return _GoingInGroups(worth, group)
