"""Searching keys by halving chunks, for blocks of queries of one row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsebench.adapters.attention._selection import top_mask
from sparsebench.adapters.attention._tiles import Tile
from sparsebench.engine.attention import AttentionView, Geometry
from sparsebench.engine.transfer import sent

ELEMENTS = 2**24
"""Entries of gathered keys that are held at a time."""


@dataclass(frozen=True)
class Places:
    """Where queries stand, as far as an allowance must know it."""

    positions: torch.Tensor
    window: int | None
    decode: bool

    @property
    def geometry(self) -> Geometry:
        """As of an `AttentionView`."""
        lengths = self.positions.amax(dim=1) + 1
        return Geometry(self.positions.numpy(), lengths.numpy(), (self.positions, lengths))


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries that search together, on the host.

    Attributes:
        of_query: The block of each query, [queries].
        sizes: Queries of each block, [blocks].
        low: First key that a query of the block sees, [blocks].
        end: Key after the last one that a query of the block sees, [blocks].
        chunks: Chunks of keys that go on from round to round, at least 1, [blocks].
    """

    of_query: torch.Tensor
    sizes: torch.Tensor
    low: torch.Tensor
    end: torch.Tensor
    chunks: torch.Tensor


def blocks_of(positions: torch.Tensor, room: torch.Tensor, window: int | None, size: int, leaf: int) -> Blocks:
    """Blocks of the queries at consecutive `positions` [queries], for which `room` [queries] keys are to be found."""
    of_query = positions // size - positions[0] // size
    count = int(of_query[-1]) + 1
    first, last, most = (torch.zeros(count, dtype=torch.long, device=positions.device) for _ in range(3))
    first.scatter_reduce_(0, of_query, positions, "amin", include_self=False)
    last.scatter_reduce_(0, of_query, positions, "amax", include_self=False)
    most.scatter_reduce_(0, of_query, room, "amax", include_self=False)
    low = torch.zeros_like(first) if window is None else (first + 1 - window).clamp(min=0)
    return Blocks(of_query, last - first + 1, low, last + 1, (-(-most // leaf)).clamp(min=1))


def rounds_of(blocks: Blocks, leaf: int) -> torch.Tensor:
    """How often the chunks of each block are halved until none has more than `leaf` keys, int64 [blocks]."""
    widest = -(-(blocks.end - blocks.low) // blocks.chunks)
    rounds = torch.zeros_like(widest)
    while bool((widest > leaf).any()):
        rounds += widest > leaf
        widest = torch.where(widest > leaf, -(-widest // 2), widest)
    return rounds


def search_flops(blocks: Blocks, heads: int, head_dim: int, leaf: int) -> float:
    """FLOPs of the scores of both halves of every chunk, in every round, for every query and head."""
    scores = rounds_of(blocks, leaf) * 2 * blocks.chunks * blocks.sizes
    return 2.0 * heads * head_dim * float(scores.sum())


def search(row: AttentionView, blocks: Blocks, leaf: int) -> torch.Tensor:
    """Keys that are left of each block's search, bool [heads, blocks, keys]; those of the last chunks.

    Args:
        row: One row without padding.
        blocks: Its blocks of queries.
        leaf: Keys of the smallest chunks.
    """
    heads, keys = row.query.shape[1], row.key.shape[2]
    found = torch.zeros((heads, len(blocks.sizes), keys), dtype=torch.bool, device=row.key.device)
    first = torch.cumsum(blocks.sizes, 0) - blocks.sizes
    most = int(blocks.chunks.max())
    step = max(1, ELEMENTS // (heads * 2 * most * row.key.shape[3]))
    for begin in range(0, len(blocks.sizes), step):
        part = slice(begin, begin + step)
        own = Blocks(blocks.of_query, blocks.sizes[part], blocks.low[part], blocks.end[part], blocks.chunks[part])
        found[:, part] = _search(row, own, first[part], leaf)
    return found


def _search(row: AttentionView, blocks: Blocks, first: torch.Tensor, leaf: int) -> torch.Tensor:
    heads, count, widest = row.query.shape[1], len(blocks.sizes), int(blocks.sizes.max())
    most, rounds = int(blocks.chunks.max()), int(rounds_of(blocks, leaf).max())
    on_device = (sent(part.numpy(), row.key.device) for part in (first, *vars(blocks).values()))
    first, blocks = next(on_device), Blocks(*on_device)
    inside = torch.arange(widest, device=first.device) < blocks.sizes[:, None]
    places = torch.where(inside, first[:, None] + torch.arange(widest, device=first.device), first[:, None])
    query = row.query[0].float()[:, places]  # [heads, blocks, queries, dim]; a short block repeats its first query
    number = torch.arange(most + 1, device=first.device)
    span = (blocks.end - blocks.low)[:, None]
    edges = blocks.low[:, None] + span * number.clamp(max=most) // blocks.chunks[:, None]
    edges = torch.minimum(edges, blocks.end[:, None]).expand(heads, -1, -1)
    begin, end = edges[..., :-1], edges[..., 1:]
    for _ in range(rounds):
        split = end - begin > leaf
        middle = torch.where(split, begin + -(-(end - begin) // 2), end)
        begin, end = torch.cat([begin, middle], dim=-1), torch.cat([middle, end], dim=-1)
        score = _scores(row, query, (begin + end) // 2).masked_fill(begin >= end, -torch.inf)
        kept = top_mask(score, torch.minimum(blocks.chunks, (begin < end).sum(dim=-1)))
        order = kept.long().sort(dim=-1, descending=True, stable=True).indices[..., :most]
        begin, end = begin.gather(-1, order), end.gather(-1, order)
        end = torch.where(kept.gather(-1, order), end, begin)
    change = torch.zeros((heads, count, row.key.shape[2] + 1), dtype=torch.int32, device=first.device)
    ones = torch.ones_like(begin, dtype=torch.int32)
    change.scatter_add_(2, begin, ones)
    change.scatter_add_(2, end, -ones)
    return change.cumsum(dim=-1)[..., :-1] > 0


def _scores(row: AttentionView, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The highest score that a query of the block gives to each key, [heads, blocks, chunks]."""
    key_heads = torch.arange(len(query), device=query.device) // row.group
    keys = row.key[0].float()[key_heads[:, None, None], places.clamp(max=row.key.shape[2] - 1)]
    return (query @ keys.transpose(-1, -2)).amax(dim=2)


@dataclass(frozen=True)
class Found:
    """Recent and first keys, then what a search found, then other recent keys; one row.

    Attributes:
        found: Bool [heads, blocks, keys].
        of_query: The block of each query, [queries].
        counts: Keys that each query reads, [queries].
        recent: Those of them that are recent in any case, [queries].
        sinks: Those of them that are first ones in any case, [queries].
    """

    found: torch.Tensor
    of_query: torch.Tensor
    counts: torch.Tensor
    recent: torch.Tensor
    sinks: torch.Tensor
    index_flops: float = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        queries = slice(first, first + part.query.shape[2])
        length = part.key.shape[2]
        keys = torch.arange(length, device=self.counts.device)
        at = part.positions[0, :, None]
        near = keys > at - self.recent[queries, None]
        forced = near | (keys < self.sinks[queries, None])
        chosen = self.found[:, self.of_query[queries], :length]
        tier = torch.where(keys == at, 3.0, torch.where(forced, 2.0, chosen.float()))
        score = (keys + length * tier)[None].masked_fill(~part.visible(), -torch.inf)
        return top_mask(score, self.counts[queries])

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        queries = slice(first, first + part.query.shape[2])
        length = part.key.shape[2]
        keys = torch.arange(length, device=self.counts.device)
        counts, recent, sinks, at = self.counts[queries], self.recent[queries], self.sinks[queries], part.positions[0]
        own = self.of_query[queries]
        found = self.found[:, int(own.min()) : int(own.max()) + 1, :length].any(dim=1)
        # What others leave of a query's budget is recent keys: none is older than its budget reaches.
        near = (keys > (at - counts).min()) | (keys < sinks.max())
        heads = torch.arange(len(found), device=keys.device)[:, None]

        def pairs(places: torch.Tensor) -> torch.Tensor:
            place = places[0][:, None]
            forced = (place > at[:, None] - recent[:, None]) | (place < sinks[:, None])
            chosen = self.found[heads[..., None], own[:, None], place]
            tier = torch.where(place == at[:, None], 3.0, torch.where(forced, 2.0, chosen.float()))
            seen = (place <= at[:, None]) & (place > at[:, None] - (part.window or length))
            # A place that is named twice stands for padding: only the first counts.
            first_of = torch.nn.functional.pad(place[..., 1:] != place[..., :-1], (1, 0), value=True)
            return top_mask((place + length * tier).masked_fill(~(seen & first_of), -torch.inf), counts)[None]

        return Tile((found | near)[None], pairs)
