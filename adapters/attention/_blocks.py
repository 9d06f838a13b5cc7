"""Choosing blocks of keys for blocks of queries, and pages of keys for single queries, at an allowance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from sparsebench.adapters.attention._allowance import GOLDEN, Allowance, dither, seen_keys
from sparsebench.adapters.attention._estimate import attention_weights, block_means, block_sums
from sparsebench.adapters.attention._rows import SLICE, part_of
from sparsebench.adapters.attention._selection import Pages, top_mask
from sparsebench.engine import fused
from sparsebench.engine.attention import AttentionView
from sparsebench.engine.transfer import sent


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


@dataclass(frozen=True)
class Grid:
    """Blocks of queries by blocks of keys, of rows that begin together.

    Attributes:
        pairs: Visible pairs in each block, int64 [rows, query_blocks, key_blocks]; 0 beyond a row's end.
        own: Blocks on the diagonal, bool [query_blocks, key_blocks].
        totals: Pairs of each row, float64 [rows], on the host.
        seen: Blocks of each row in which there are pairs, float64 [rows], on the host.
        lengths: Keys of each row, int64 [rows], on the host.
        start: Position of the first query.
        size: Queries and keys of a block.
    """

    pairs: torch.Tensor
    own: torch.Tensor
    totals: np.ndarray
    seen: np.ndarray
    lengths: np.ndarray
    start: int
    size: int

    @classmethod
    def of(cls, rows: AttentionView, size: int) -> Grid:
        """The blocks of some rows; the same in all layers."""
        memo, key = rows.geometry.memo, ("grid", size, rows.window)
        if key not in memo:
            start, lengths = int(rows.geometry.positions[0, 0]), rows.geometry.lengths
            memo[key] = cls.made(start, lengths, rows.window, size, rows.query.device)
        grid: Grid = memo[key]
        return grid

    @classmethod
    def made(cls, start: int, lengths: np.ndarray, window: int | None, size: int, device: torch.device) -> Grid:
        """The blocks of rows of so many keys, whose queries begin at `start`."""
        whole = block_pairs(start, int(lengths.max()) - start, window, size).numpy()
        pairs = np.zeros((len(lengths), *whole.shape), dtype=np.int64)
        for row, length in enumerate(lengths.tolist()):
            begun = max(start, length // size * size)  # of a block that the row ends in
            full = begun // size - start // size
            pairs[row, :full] = whole[:full]
            if begun < length:
                last = block_pairs(begun, length - begun, window, size).numpy()
                pairs[row, full, : last.shape[1]] = last[0]
        own = np.arange(whole.shape[0])[:, None] + start // size == np.arange(whole.shape[1])
        totals, seen = pairs.sum(axis=(1, 2), dtype=float), (pairs > 0).sum(axis=(1, 2), dtype=float)
        return cls(sent(pairs, device), sent(own, device), totals, seen, lengths, start, size)

    @property
    def first_block(self) -> int:
        """Block of the first query."""
        return self.start // self.size


def choose_blocks(score: torch.Tensor, grid: Grid, forced: torch.Tensor, allowance: Allowance) -> torch.Tensor:
    """The blocks with the highest scores, bool [rows, heads, query_blocks, key_blocks].

    Each row of blocks keeps as many as the others, or all it has; a share of pairs is met by each head.

    Args:
        score: [rows, heads, query_blocks, key_blocks].
        grid: The blocks.
        forced: Blocks to keep in any case, bool [query_blocks, key_blocks]; within the allowance, where that has room.
        allowance: Density or tokens.
    """
    pairs, size = grid.pairs, grid.size
    visible = pairs > 0
    forced = forced & visible
    score = score.float().masked_fill(~visible[:, None], -torch.inf).masked_fill(forced[:, None], torch.inf)
    most = visible.sum(dim=-1)
    least = torch.minimum(forced.sum(dim=-1).clamp(min=1), most)
    if allowance.tokens is not None:
        begun = torch.arange(pairs.shape[2], device=pairs.device) * size
        widths = (sent(grid.lengths, pairs.device)[:, None] - begun).clamp(min=0, max=size)
        keys = (visible * widths[:, None]).sum(dim=-1)
        counts = torch.full_like(most, allowance.tokens // size)
        counts = torch.where(allowance.tokens >= keys, most, counts)[:, None]
    elif (allowance.density or 0.0) >= 1:
        counts = most[:, None]
    else:
        target = sent((allowance.density or 0.0) * grid.totals + size * size / 2, pairs.device)
        counts = _counts(score, pairs, target, least, most)
    return top_mask(score, torch.minimum(torch.maximum(counts, least[:, None]), most[:, None])) & visible[:, None]


def _counts(
    score: torch.Tensor, pairs: torch.Tensor, target: torch.Tensor, least: torch.Tensor, most: torch.Tensor
) -> torch.Tensor:
    """Blocks of each row of blocks with which a head reads at most `target` pairs, int64 [rows, heads, query_blocks].

    A row i takes floor(level + s_i) blocks, from `least` to `most`, with the same level for all rows and s_i spread
    evenly over [0, 1): its block of rank r joins when the level reaches r + 1 - s_i. In that order they are added up.
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    ranked = pairs[:, None].expand_as(score).gather(-1, order)
    rank = torch.arange(pairs.shape[2], device=score.device)
    joins = (rank >= least[..., None]) & (rank < most[..., None])
    given = (ranked * (rank < least[..., None])[:, None]).sum(dim=(2, 3))
    turns = sent(_turns(*pairs.shape[1:]), score.device)
    added = (ranked * joins[:, None]).flatten(2)[..., turns].cumsum(dim=-1) + given[..., None]
    taken = torch.zeros_like(added, dtype=torch.bool)
    taken[..., turns] = added <= target[:, None, None]
    return least[:, None] + (taken.reshape(score.shape) & joins[:, None]).sum(dim=-1)


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


def pooled_scores(rows: AttentionView, size: int) -> torch.Tensor:
    """Scaled products of the means of blocks of queries and of keys, [rows, heads, query_blocks, key_blocks].

    Rows begin together.
    """
    start = int(rows.geometry.positions[0, 0])
    queries = block_means(rows.query, size, 2, start % size, rows.geometry.lengths - start)
    return rows.scaling * queries @ pooled_keys(rows, size).transpose(-1, -2)


def pooled_keys(rows: AttentionView, size: int) -> torch.Tensor:
    """Means of blocks of keys, for each query head, float32 [rows, heads, key_blocks, head_dim]."""
    return block_means(rows.key, size, 2, 0, rows.geometry.lengths).repeat_interleave(rows.group, dim=1)


def block_mass(rows: AttentionView, size: int) -> torch.Tensor:
    """Attention weights summed over blocks, [rows, heads, query_blocks, key_blocks]; made slice by slice.

    Rows begin together.
    """
    if (done := fused.block_mass(rows, size)) is not None:
        return done
    start, length = int(rows.geometry.positions[0, 0]), rows.key.shape[2]
    blocks = (length - 1) // size - start // size + 1
    mass = torch.zeros((*rows.query.shape[:2], blocks, -(-length // size)), device=rows.query.device)
    for first in range(0, rows.query.shape[2], SLICE):
        part = part_of(rows, first, min(first + SLICE, rows.query.shape[2]))
        by_key = block_sums(attention_weights(part), size, 3)
        places = torch.arange(first, first + by_key.shape[2], device=mass.device) + start
        mass[..., : by_key.shape[3]].index_add_(2, places // size - start // size, by_key)
    return mass
