"""Weights as codes of a few bits: on a grid for each group of inputs, or as the nearest of a row's own values."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def on_grid(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> torch.Tensor:
    """Weights rounded to the nearest of 2^bits even steps in each group of consecutive inputs.

    Scales are rounded to 16 bits. Zero is on every grid, so that zeros stay zeros.

    Args:
        weight: float32 [out, in].
        bits: Bits of a code.
        group: Inputs that share a scale; 0: all inputs of a row. A last group may be smaller.
        symmetric: Whether steps lie evenly around zero, without a zero point.

    Returns:
        What the codes decode to, float32 [out, in].
    """
    rows, columns = weight.shape
    width = group or columns
    padded = torch.nn.functional.pad(weight, (0, -columns % width)).reshape(rows, -1, width)
    decoded = grid_of(padded, bits, symmetric).nearest(padded)
    return decoded.reshape(rows, -1)[:, :columns].contiguous()


@dataclass(frozen=True)
class Grid:
    """Even steps for each of many groups of weights.

    Attributes:
        scale: A step, as 16 bits hold it, [..., 1].
        zero: The code of zero, [..., 1].
        least: The least code.
        greatest: The greatest.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    least: int
    greatest: int

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """What the codes of weights [..., n] decode to."""
        codes = (weight / _divisor(self.scale)).round() + self.zero
        return codes.clamp(self.least, self.greatest).sub(self.zero) * self.scale


def grid_of(weight: torch.Tensor, bits: int, symmetric: bool) -> Grid:
    """The grid of each group of weights [..., n], from its least and its greatest; see `on_grid`."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = half(weight.abs().amax(dim=-1, keepdim=True) / top)
        return Grid(scale, torch.zeros_like(scale), -top - 1, top)
    top = 2**bits - 1
    low, high = weight.amin(dim=-1, keepdim=True).clamp(max=0), weight.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = half((high - low) / top)
    return Grid(scale, (-low / _divisor(scale)).round().clamp(0, top), 0, top)


def grid_bits(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> dict[str, float]:
    """What `on_grid` stores: codes, a scale of 16 bits for each group, and a zero point of as many bits as a code."""
    groups = rows * (-(-columns // group) if group else 1)
    found = {"codes": float(rows * columns * bits), "scales": 16.0 * groups}
    return found if symmetric else {**found, "zero points": float(bits * groups)}


def half(x: torch.Tensor) -> torch.Tensor:
    """Values as 16 bits hold them, as float32; those too large for float16 stay the largest that it has."""
    return x.clamp(-65504.0, 65504.0).half().float()


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """The scale, or 1 where it is zero: there all weights are, or are too small for a scale of 16 bits."""
    return torch.where(scale == 0, 1.0, scale)


def to_nearest_of(weight: torch.Tensor, mass: torch.Tensor, count: int, rounds: int = 50) -> torch.Tensor:
    """Each row's weights as the nearest of `count` values of its own: weighted k-means (Lloyd) in one dimension.

    It starts from greedy splits: that part of the sorted row is cut in two, where that lessens the error most.

    Args:
        weight: float32 [rows, columns].
        mass: How much an error of each weight counts, at least 0, [rows, columns]; rows without any count evenly.
        count: Values of a row.
        rounds: Most rounds; the values settle before, as a rule.

    Returns:
        float32 [rows, columns]; each row has at most `count` different values, rounded to 16 bits.
    """
    values, order = weight.double().sort(dim=1)
    mass = torch.where(mass.sum(dim=1, keepdim=True) > 0, mass, 1.0).double().gather(1, order)
    sums = [torch.nn.functional.pad(part.cumsum(dim=1), (1, 0)) for part in (mass, mass * values)]
    cuts = _greedy_cuts(sums, count)
    first = _edges(cuts, values.shape[1])[:, :-1].clamp(max=values.shape[1] - 1)
    centres = _means(values, sums, cuts, values.gather(1, first))
    for _ in range(rounds):
        moved = torch.searchsorted(values, (centres[:, 1:] + centres[:, :-1]) / 2)
        if torch.equal(moved, cuts):
            break
        cuts = moved
        centres = _means(values, sums, cuts, centres)
    centres = half(centres.float())
    nearest = torch.searchsorted(((centres[:, 1:] + centres[:, :-1]) / 2).contiguous(), weight.contiguous())
    return centres.gather(1, nearest)


def _greedy_cuts(sums: list[torch.Tensor], count: int) -> torch.Tensor:
    """Where to cut sorted rows into `count` parts at first, [rows, count - 1], in order.

    Args:
        sums: Mass, and mass times value, before each place of the sorted row, each [rows, columns + 1].
        count: Parts.
    """
    columns = sums[0].shape[1] - 1
    tried = torch.linspace(0, columns, min(columns, PLACES) + 1, dtype=torch.float64).long().to(sums[0].device)
    sums = [part.index_select(1, tried) for part in sums]
    ends = len(tried) - 1
    places = torch.arange(ends, device=tried.device).expand(len(sums[0]), -1).contiguous()
    cuts = places[:, :0]
    for _ in range(count - 1):
        edges = _edges(cuts, ends)
        part = torch.searchsorted(edges, places, right=True)
        first, last = edges.gather(1, part - 1), edges.gather(1, part)
        (left, left_total), (right, right_total) = (
            [part_sum.gather(1, end) - part_sum.gather(1, start) for part_sum in sums]
            for start, end in ((first, places), (places, last))
        )
        apart = left_total / left.clamp(min=TINY) - right_total / right.clamp(min=TINY)
        gain = left * right / (left + right).clamp(min=TINY) * apart.square()
        cuts = torch.cat([cuts, gain.argmax(dim=1, keepdim=True)], dim=1).sort(dim=1).values
    return tried[cuts]


PLACES = 256
"""Most places of a row that are tried for its first cuts; all are, where it has no more."""
TINY = 1e-300
"""Keeps parts without mass from being divided by nothing."""


def _edges(cuts: torch.Tensor, columns: int) -> torch.Tensor:
    """Where the parts of a row begin, and where the last one ends."""
    return torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=columns)


def _means(values: torch.Tensor, sums: list[torch.Tensor], cuts: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Weighted means of the parts of sorted rows, in order; a part without mass keeps its value from before."""
    edges = _edges(cuts, values.shape[1])
    mass, total = (part.gather(1, edges).diff(dim=1) for part in sums)
    return torch.where(mass > 0, total / mass.clamp(min=TINY), before).sort(dim=1).values
