"""Choosing blocks of keys for blocks of queries, and pages of keys for single queries, at an allowance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from sparsebench.adapters.attention._allowance import GOLDEN, Allowance, dither, seen_keys
from sparsebench.adapters.attention._estimate import attention_weights, block_means, block_sums
from sparsebench.adapters.attention._selection import Pages, part_of, top_mask
from sparsebench.engine.attention import AttentionView
from sparsebench.engine.transfer import sent

SLICE = 256
"""Queries whose attention weights are held at a time."""


@lru_cache(maxsize=32)
def block_pairs(start: int, count: int, window: int | None, size: int) -> torch.Tensor:
    """Visible pairs in each block, int64 [query_blocks, key_blocks]; block 0 of the queries holds position `start`."""
    edges = torch.arange(0, start + count, size)
    pairs = torch.zeros(((start + count - 1) // size - start // size + 1, len(edges)), dtype=torch.int64)
    for first in range(start, start + count, 4 * SLICE):
        positions = torch.arange(first, min(first + 4 * SLICE, start + count))
        lowest = (positions + 1 - (window or start + count)).clamp(min=0)
        seen = torch.minimum(positions[:, None] + 1, edges + size) - torch.maximum(lowest[:, None], edges)
        pairs.index_add_(0, positions // size - start // size, seen.clamp(min=0))
    return pairs


def own_blocks(pairs: torch.Tensor, start: int, size: int) -> torch.Tensor:
    """Blocks on the diagonal, bool [query_blocks, key_blocks]."""
    rows = torch.arange(pairs.shape[0], device=pairs.device) + start // size
    return rows[:, None] == torch.arange(pairs.shape[1], device=pairs.device)


def choose_blocks(
    score: torch.Tensor, pairs: torch.Tensor, forced: torch.Tensor, allowance: Allowance, size: int, length: int
) -> torch.Tensor:
    """The blocks with the highest scores, bool [heads, query_blocks, key_blocks].

    Each row of blocks keeps as many as the others, or all it has; a share of pairs is met by each head.

    Args:
        score: [heads, query_blocks, key_blocks].
        pairs: `block_pairs` of the row, on the host.
        forced: Blocks to keep in any case, on the host, bool [query_blocks, key_blocks]; within the allowance, where
            that has room.
        allowance: Density or tokens.
        size: Keys of a block.
        length: Keys of the row.
    """
    total = float(pairs.sum())
    pairs = sent(pairs.numpy(), score.device)
    visible = pairs > 0
    forced = sent(forced.numpy(), score.device) & visible
    score = score.float().masked_fill(~visible, -torch.inf).masked_fill(forced, torch.inf)
    most = visible.sum(dim=1)
    least = forced.sum(dim=1).clamp(min=1)
    if allowance.tokens is not None:
        widths = (length - torch.arange(pairs.shape[1], device=pairs.device) * size).clamp(max=size)
        keys = (visible * widths).sum(dim=1)
        counts = torch.full_like(most, allowance.tokens // size)
        counts = torch.where(allowance.tokens >= keys, most, counts)
    else:
        target = (allowance.density or 0.0) * total + size * size / 2
        counts = most if (allowance.density or 0.0) >= 1 else _counts(score, pairs, target, least, most)
    return top_mask(score, torch.minimum(torch.maximum(counts, least), most)) & visible


def _counts(
    score: torch.Tensor, pairs: torch.Tensor, target: float, least: torch.Tensor, most: torch.Tensor
) -> torch.Tensor:
    """Blocks of each row with which a head reads at most `target` pairs, int64 [heads, query_blocks].

    A row i takes floor(level + s_i) blocks, from `least` to `most`, with the same level for all rows and s_i spread
    evenly over [0, 1): its block of rank r joins when the level reaches r + 1 - s_i. In that order they are added up.
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    ranked = pairs.expand_as(score).gather(-1, order)
    least = torch.minimum(least, most)
    rank = torch.arange(pairs.shape[1], device=score.device)
    joins = (rank >= least[:, None]) & (rank < most[:, None])
    given = (ranked * (rank < least[:, None])).sum(dim=(1, 2))
    turns = sent(_turns(*pairs.shape), score.device)
    added = (ranked * joins).flatten(1)[:, turns].cumsum(dim=1) + given[:, None]
    taken = torch.zeros_like(added, dtype=torch.bool)
    taken[:, turns] = added <= target
    return least + (taken.reshape(score.shape) & joins).sum(dim=-1)


@lru_cache(maxsize=32)
def _turns(rows: int, columns: int) -> np.ndarray:
    """Flat places of the blocks by rank, [rows * columns], in the order in which a rising level takes them."""
    spread = np.modf((np.arange(rows) + 1.0) * GOLDEN)[0]
    return np.argsort((np.arange(columns) + 1.0 - spread[:, None]).ravel(), kind="stable")


def choose_pages(score: torch.Tensor, view: AttentionView, allowance: Allowance, size: int, least: int = 1) -> Pages:
    """The page of each query's own key, and the pages before it with the highest scores.

    Args:
        score: [rows, heads, queries, pages], or with key heads or 1 in the place of heads.
        view: The rows.
        allowance: Density or tokens.
        size: Keys of a page.
        least: Pages that a budget in tokens gives at least.
    """
    at = view.positions.clamp(min=0)
    seen = seen_keys(view)
    lowest = at + 1 - seen.clamp(min=1)
    own, oldest = at // size, lowest // size
    before = own - oldest
    own_keys = at + 1 - torch.maximum(own * size, lowest)
    if allowance.tokens is not None:
        wanted = torch.full_like(seen, max(allowance.tokens // size, least) - 1)
        wanted = torch.where(allowance.tokens >= seen, before, wanted)
    elif (allowance.density or 0.0) >= 1:
        wanted = before
    else:
        share = ((allowance.density or 0.0) * seen - own_keys) / size
        wanted = torch.floor(share.double() + dither(view.positions)).long()
    counts = torch.minimum(wanted.clamp(min=0), before)
    page = torch.arange(score.shape[-1], device=score.device)
    candidates = (page >= oldest[..., None]) & (page < own[..., None])
    if allowance.tokens is not None:
        most = max(allowance.tokens // size, least)
    else:
        most = int((allowance.density or 0.0) * (1 + int(view.geometry.positions.max(initial=0))) / size) + 1
    chosen = top_mask(score.float().masked_fill(~candidates[:, None], -torch.inf), counts[:, None], most)
    return Pages((chosen & candidates[:, None]) | (page == own[..., None])[:, None], size)


def pooled_scores(row: AttentionView, size: int) -> torch.Tensor:
    """Scaled products of the means of blocks of queries and of keys, of one row, [heads, query_blocks, key_blocks]."""
    start = int(row.geometry.positions[0, 0])
    queries = block_means(row.query[0], size, 1, start % size)
    keys = block_means(row.key[0], size, 1).repeat_interleave(row.group, dim=0)
    return row.scaling * queries @ keys.transpose(-1, -2)


def block_mass(row: AttentionView, size: int) -> torch.Tensor:
    """Attention weights of one row summed over blocks, [heads, query_blocks, key_blocks]; made slice by slice."""
    start, length = int(row.geometry.positions[0, 0]), row.key.shape[2]
    blocks = (length - 1) // size - start // size + 1
    mass = torch.zeros((row.query.shape[1], blocks, -(-length // size)), device=row.query.device)
    for first in range(0, row.query.shape[2], SLICE):
        part = part_of(row, first, min(first + SLICE, row.query.shape[2]))
        by_key = block_sums(attention_weights(part)[0], size, 2)
        mass[:, :, : by_key.shape[2]].index_add_(1, part.positions[0] // size - start // size, by_key)
    return mass
