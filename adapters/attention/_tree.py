"""Searching keys by halving chunks, for blocks of queries of rows that begin together."""

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
class SearchBlocks:
    """Blocks of queries that search together, on the host; those of one row after those of another.

    Attributes:
        of_query: The block of each query in its row, [queries]; the same for all rows.
        row: The row of each block, [blocks].
        number: Its number in its row, [blocks].
        first: Its first query, [blocks].
        sizes: Its queries, [blocks].
        low: First key that a query of the block sees, [blocks].
        end: Key after the last one that a query of the block sees, [blocks].
        chunks: Chunks of keys that go on from round to round, at least 1, [blocks].
    """

    of_query: torch.Tensor
    row: torch.Tensor
    number: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    low: torch.Tensor
    end: torch.Tensor
    chunks: torch.Tensor

    def rounds(self, leaf: int) -> torch.Tensor:
        """How often the chunks of each block are halved until none has more than `leaf` keys, int64 [blocks]."""
        widest = -(-(self.end - self.low) // self.chunks)
        rounds = torch.zeros_like(widest)
        while bool((widest > leaf).any()):
            rounds += widest > leaf
            widest = torch.where(widest > leaf, -(-widest // 2), widest)
        return rounds

    def search_flops(self, heads: int, head_dim: int, leaf: int) -> float:
        """FLOPs of the scores of both halves of every chunk, in every round, for every query and head."""
        scores = self.rounds(leaf) * 2 * self.chunks * self.sizes
        return 2.0 * heads * head_dim * float(scores.sum())

    def part(self, which: slice) -> SearchBlocks:
        """Some of them."""
        return SearchBlocks(self.of_query, *(x[which] for name, x in vars(self).items() if name != "of_query"))


def blocks_of(positions: torch.Tensor, room: torch.Tensor, window: int | None, size: int, leaf: int) -> SearchBlocks:
    """Blocks of the queries of rows that begin together.

    Args:
        positions: Consecutive, [rows, queries]; -1 after a row's last query.
        room: Keys that are to be found for each, [rows, queries].
        window: What a query sees at most.
        size: Queries of a block.
        leaf: Keys of the smallest chunks.
    """
    rows, queries = positions.shape
    start = int(positions[0, 0])
    of_query = (start + torch.arange(queries)) // size - start // size
    count = int(of_query[-1]) + 1
    real, blocks = positions >= 0, of_query.expand(rows, -1)
    last, most, sizes = (torch.zeros((rows, count), dtype=torch.long) for _ in range(3))
    last.scatter_reduce_(1, blocks, positions, "amax")
    most.scatter_reduce_(1, blocks, room * real, "amax")
    sizes.scatter_add_(1, blocks, real.long())
    row, number = sizes.nonzero(as_tuple=True)
    begun = (torch.arange(count) * size + start // size * size).clamp(min=start)
    first, end = begun[number], last[row, number] + 1
    low = torch.zeros_like(first) if window is None else (first + 1 - window).clamp(min=0)
    chunks = (-(-most[row, number] // leaf)).clamp(min=1)
    return SearchBlocks(of_query, row, number, first - start, sizes[row, number], low, end, chunks)


def search(rows: AttentionView, blocks: SearchBlocks, leaf: int) -> torch.Tensor:
    """Keys that are left of each block's search, bool [rows, heads, blocks, keys]; those of the last chunks.

    Args:
        rows: Rows that begin together.
        blocks: Their blocks of queries.
        leaf: Keys of the smallest chunks.
    """
    heads, keys = rows.query.shape[1], rows.key.shape[2]
    shape = (len(rows.query), int(blocks.of_query[-1]) + 1, heads, keys)
    found = torch.zeros(shape, dtype=torch.bool, device=rows.key.device)
    most = int(blocks.chunks.max())
    step = max(1, ELEMENTS // (heads * 2 * most * rows.key.shape[3]))
    for begin in range(0, len(blocks.sizes), step):
        part = blocks.part(slice(begin, begin + step))
        row, number = (sent(x.numpy(), found.device) for x in (part.row, part.number))
        found[row, number] = _search(rows, part, leaf).transpose(0, 1)
    return found.transpose(1, 2)


def _search(rows: AttentionView, blocks: SearchBlocks, leaf: int) -> torch.Tensor:
    """Of these blocks, [heads, blocks, keys]."""
    heads, count, widest = rows.query.shape[1], len(blocks.sizes), int(blocks.sizes.max())
    most, rounds = int(blocks.chunks.max()), int(blocks.rounds(leaf).max())
    on_device = SearchBlocks(*(sent(part.contiguous().numpy(), rows.key.device) for part in vars(blocks).values()))
    first, chunks = on_device.first[:, None], on_device.chunks
    number = torch.arange(widest, device=first.device)
    places = torch.where(number < on_device.sizes[:, None], first + number, first)
    # [heads, blocks, queries, dim]; a short block repeats its first query
    query = rows.query.float().transpose(0, 1)[:, on_device.row[:, None], places]
    number = torch.arange(most + 1, device=first.device)
    low, end = on_device.low[:, None], on_device.end[:, None]
    edges = low + (end - low) * number.clamp(max=most) // chunks[:, None]
    edges = torch.minimum(edges, end).expand(heads, -1, -1)
    begin, end = edges[..., :-1], edges[..., 1:]
    keys = rows.key.float().transpose(0, 1)
    for _ in range(rounds):
        split = end - begin > leaf
        middle = torch.where(split, begin + -(-(end - begin) // 2), end)
        begin, end = torch.cat([begin, middle], dim=-1), torch.cat([middle, end], dim=-1)
        score = _scores(keys, query, on_device.row, (begin + end) // 2).masked_fill(begin >= end, -torch.inf)
        kept = top_mask(score, torch.minimum(chunks, (begin < end).sum(dim=-1)))
        order = kept.long().sort(dim=-1, descending=True, stable=True).indices[..., :most]
        begin, end = begin.gather(-1, order), end.gather(-1, order)
        end = torch.where(kept.gather(-1, order), end, begin)
    change = torch.zeros((heads, count, rows.key.shape[2] + 1), dtype=torch.int32, device=first.device)
    ones = torch.ones_like(begin, dtype=torch.int32)
    change.scatter_add_(2, begin, ones)
    change.scatter_add_(2, end, -ones)
    return change.cumsum(dim=-1)[..., :-1] > 0


def _scores(keys: torch.Tensor, query: torch.Tensor, row: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The highest score that a query of the block gives to each key, [heads, blocks, chunks]."""
    key_heads = torch.arange(len(query), device=query.device) // (len(query) // len(keys))
    chosen = keys[key_heads[:, None, None], row[:, None], places.clamp(max=keys.shape[2] - 1)]
    return (query @ chosen.transpose(-1, -2)).amax(dim=2)


@dataclass(frozen=True)
class Found:
    """Recent and first keys, then what a search found, then other recent keys; of rows that begin together.

    Attributes:
        found: Bool [rows, heads, blocks, keys].
        of_query: The block of each query, [queries].
        counts: Keys that each query reads, [rows, queries].
        recent: Those of them that are recent in any case, [rows, queries].
        sinks: Those of them that are first ones in any case, [rows, queries].
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
        at = part.positions[:, None, :, None]
        recent, sinks = self.recent[:, None, queries, None], self.sinks[:, None, queries, None]
        forced = (keys > at - recent) | (keys < sinks)
        chosen = self.found.index_select(2, self.of_query[queries])[..., :length]
        tier = torch.where(keys == at, 3.0, torch.where(forced, 2.0, chosen.float()))
        score = (keys + length * tier).masked_fill(~part.visible(), -torch.inf)
        return top_mask(score, self.counts[:, None, queries])

    def of_row(self, row: int) -> Found:
        """See `_rows.Together`."""
        own = slice(row, row + 1)
        return Found(self.found[own], self.of_query, self.counts[own], self.recent[own], self.sinks[own])

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`; of one row."""
        queries = slice(first, first + part.query.shape[2])
        length = part.key.shape[2]
        keys = torch.arange(length, device=self.counts.device)
        counts, recent, sinks = self.counts[0, queries], self.recent[0, queries], self.sinks[0, queries]
        at, own = part.positions[0], self.of_query[queries]
        found = self.found[0, :, int(own.min()) : int(own.max()) + 1, :length].any(dim=1)
        # What others leave of a query's budget is recent keys: none is older than its budget reaches.
        near = (keys > (at - counts).min()) | (keys < sinks.max())
        heads = torch.arange(len(found), device=keys.device)[:, None]

        def pairs(places: torch.Tensor) -> torch.Tensor:
            place = places[0][:, None]
            forced = (place > at[:, None] - recent[:, None]) | (place < sinks[:, None])
            chosen = self.found[0][heads[..., None], own[:, None], place]
            tier = torch.where(place == at[:, None], 3.0, torch.where(forced, 2.0, chosen.float()))
            seen = (place <= at[:, None]) & (place > at[:, None] - (part.window or length))
            # A place that is named twice stands for padding: only the first counts.
            first_of = torch.nn.functional.pad(place[..., 1:] != place[..., :-1], (1, 0), value=True)
            return top_mask((place + length * tier).masked_fill(~(seen & first_of), -torch.inf), counts)[None]

        return Tile((found | near)[None], pairs)
