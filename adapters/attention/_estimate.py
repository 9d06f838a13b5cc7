"""What methods estimate from: attention weights, pooled queries and keys, random numbers that depend on places only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sparsebench.engine.attention import AttentionView, Geometry, scores
from sparsebench.engine.transfer import sent


def attention_weights(part: AttentionView) -> torch.Tensor:
    """The weights of dense attention, float32 [rows, heads, queries, keys]; zeros for a padded query.

    With learned sinks they sum to less than 1.
    """
    logits = scores(part).masked_fill(~part.visible(), -torch.inf)
    if part.sinks is not None:
        sinks = part.sinks.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
    return torch.softmax(logits, dim=-1).nan_to_num()


def last_queries(view: AttentionView, count: int) -> AttentionView:
    """The last `count` queries of each row, or all where there are fewer; rows may be padded on the right.

    Where one row has fewer than another, its queries are padded on the left, with a position of -1.
    """
    known = view.geometry
    held = (known.positions >= 0).sum(axis=1)
    most = min(count, int(held.max()))
    if (held == known.positions.shape[1]).all():
        first = known.positions.shape[1] - most
        return replace(view, query=view.query[:, :, first:], positions=view.positions[:, first:], aligned=False)
    if ("last", count) not in known.memo:
        wanted = held[:, None] - most + np.arange(most)
        positions = np.where(wanted >= 0, np.take_along_axis(known.positions, wanted.clip(min=0), axis=1), -1)
        at = sent(positions, view.query.device), view.lengths
        places = sent(wanted.clip(min=0), view.query.device)
        known.memo["last", count] = places, Geometry(positions, known.lengths, at)
    places, own = known.memo["last", count]
    chosen = places[:, None, :, None].expand(-1, view.query.shape[1], -1, view.query.shape[3])
    return replace(view, query=view.query.gather(2, chosen), positions=own.of[0], aligned=False, known=own)


def grouped(x: torch.Tensor, group: int, dim: int = 0) -> torch.Tensor:
    """Query heads along `dim` as two dimensions: key heads, and the heads of the group of each."""
    return x.reshape(*x.shape[:dim], -1, group, *x.shape[dim + 1 :])


def block_sums(x: torch.Tensor, size: int, dim: int, start: int = 0) -> torch.Tensor:
    """Sums over blocks of `size` along `dim`; `start` is the place of the first entry in its block.

    The last block, and with `start` the first, may be incomplete.
    """
    last = x.movedim(dim, -1)
    padded = torch.nn.functional.pad(last, (start, -(start + last.shape[-1]) % size))
    return padded.reshape(*last.shape[:-1], -1, size).sum(dim=-1).movedim(-1, dim)


def block_means(x: torch.Tensor, size: int, dim: int, start: int = 0, held: np.ndarray | None = None) -> torch.Tensor:
    """Means over blocks of `size` along `dim`, float32; see `block_sums`.

    Args:
        x: The numbers.
        size: Entries of a block.
        dim: Along which there are blocks.
        start: Place of the first entry in its block.
        held: So many first entries of each row (dimension 0) are real, int64 [rows]; None: all.
    """
    x, length = x.float().movedim(dim, -1), x.shape[dim]
    counts = block_sums(torch.ones(length, device=x.device), size, 0, start)
    if held is not None and (held < length).any():
        real = (torch.arange(length, device=x.device) < sent(held, x.device)[:, None]).float()
        real = real.reshape(len(real), *[1] * (x.dim() - 2), length)
        x = x.where(real > 0, 0)
        counts = block_sums(real, size, -1, start).clamp(min=1)
    means: torch.Tensor = block_sums(x, size, -1, start) / counts
    return means.movedim(-1, dim)


def uniform(seed: int, *places: int | torch.Tensor) -> torch.Tensor:
    """Random numbers in [0, 1) that depend on the seed and the places alone, float32, broadcast over the places.

    Each place is mixed in by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    state = torch.tensor(_signed(seed * 0x9E3779B97F4A7C15))
    for place in places:
        state = _mix(state + (torch.as_tensor(place) + 1) * _signed(0x9E3779B97F4A7C15))
    numbers: torch.Tensor = (_shifted(state, 40).double() / 2**24).float()
    return numbers


def _signed(number: int) -> int:
    """A number modulo 2**64 as a signed 64-bit one."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift to the right."""
    moved: torch.Tensor = (x >> by) & (2 ** (64 - by) - 1)
    return moved


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    mixed: torch.Tensor = x ^ _shifted(x, 31)
    return mixed
