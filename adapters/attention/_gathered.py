"""Running a selection for real: keys and values that nobody reads are neither multiplied nor fetched.

In prefill, tiles of queries gather the columns that they read, or whole blocks run through FlexAttention; in decode
each query gathers the union of what the heads of a group read. What is counted comes from what was gathered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sparsebench.adapters.attention._blocks import block_pairs
from sparsebench.adapters.attention._rows import ByRun, alone, part_of, per_head, queries_of
from sparsebench.adapters.attention._selection import Blocks, Selection
from sparsebench.adapters.attention._tiles import pairs_at, tile_of
from sparsebench.engine import flex
from sparsebench.engine.attention import AttentionView, attend_masked
from sparsebench.systems.counters import Amount

TILE = 64
"""Queries of a tile in prefill."""
GATHERED = 2**24
"""Entries of keys that are gathered at a time in decode."""


@dataclass
class Tally:
    """Pairs of one view, summed over heads.

    Attributes:
        kept: Selected pairs.
        union: Keys read by any head of a group, summed over queries and key heads.
        tiles: Visible pairs among those that a kernel touches.
    """

    kept: Amount = 0
    union: Amount = 0
    tiles: Amount = 0

    def add(self, other: Tally) -> None:
        """Add another's."""
        self.kept += other.kept
        self.union += other.union
        self.tiles += other.tiles


def execute(view: AttentionView, selection: Selection) -> tuple[torch.Tensor, Tally]:
    """Attend over the selected keys, and touch no others.

    Args:
        view: The rows.
        selection: Which keys each query reads; those it does not see are left out here.

    Returns:
        The output [rows, heads, queries, value_dim], and what was read.

    Raises:
        InputError: The selection cannot be executed in this phase.
    """
    if view.decode:
        return _decode(view, selection)
    blocks = _blocks_of(view, selection)
    return _tiles(view, selection) if blocks is None else _in_blocks(view, blocks)


def _blocks_of(view: AttentionView, selection: Selection) -> list[Blocks | None] | None:
    """The blocks of each row where FlexAttention runs them; None where tiles are gathered."""
    rows = selection.by_row(len(view.query)) if isinstance(selection, ByRun) else [selection]
    if view.softcap is not None or view.sinks is not None:
        return None
    found: list[Blocks | None] = []
    for row, chosen in enumerate(rows):
        own = alone(view, row) if len(rows) > 1 else view
        if chosen is None:
            found.append(None)
        elif isinstance(chosen, Blocks) and flex.suits(own.query, own.key, chosen.size):
            found.append(chosen)
        else:
            return None
    return found


def _in_blocks(view: AttentionView, blocks: list[Blocks | None]) -> tuple[torch.Tensor, Tally]:
    out = view.query.new_zeros((*view.query.shape[:3], view.value.shape[-1]))
    tally = Tally()
    for row, selection in enumerate(blocks):
        if selection is None:
            continue
        own = alone(view, row)
        start, count, heads = int(own.geometry.positions[0, 0]), own.query.shape[2], own.query.shape[1]
        pairs = block_pairs(start, count, own.window, selection.size).to(own.query.device)
        chosen = per_head(selection.chosen, own)[0].expand(heads, -1, -1) & (pairs > 0)
        out[row, :, queries_of(view, row)] = flex.attend_blocks(
            own.query, own.key, own.value, own.scaling, chosen, pairs, selection.size, start, own.window
        )[0]
        kept = (chosen * pairs).sum()
        union = chosen.reshape(-1, own.group, *pairs.shape).any(dim=1)
        tally.add(Tally(kept, (union * pairs).sum(), kept))
    return out, tally


def _tiles(view: AttentionView, selection: Selection) -> tuple[torch.Tensor, Tally]:
    """Prefill, tile by tile of queries: gather the columns of a tile, attend to them."""
    out = view.query.new_zeros((*view.query.shape[:3], view.value.shape[-1]))
    tally = Tally()
    for first in range(0, view.query.shape[2], TILE):
        part = part_of(view, first, min(first + TILE, view.query.shape[2]))
        tile = tile_of(selection, part, first)
        columns = _within(tile.columns, part)
        if columns.shape[1] == 1:
            columns = columns.expand(-1, part.key.shape[1], -1)
        places, real = compact(columns)
        if tile.columns.shape[1] in (1, columns.shape[1]):
            chosen = tile.pairs(places)
        else:
            chosen = pairs_at(tile, places, part)
        seen = _seen(part, places) & real[:, :, None]
        keep = (chosen & seen).expand(seen.shape)
        out[:, :, first : first + TILE] = _attend(part, places, keep)
        shared = part.query.shape[1] // columns.shape[1]
        kept = torch.count_nonzero(keep)
        union = kept if columns.shape[1] == part.key.shape[1] else _union(part, places.where(real, -1), keep)
        tally.add(Tally(shared * kept, union, shared * torch.count_nonzero(seen)))
    return out, tally


def _within(columns: torch.Tensor, part: AttentionView) -> torch.Tensor:
    """Columns without those that no query of their row sees, bool [rows, heads, keys]."""
    keys = torch.arange(part.key.shape[2], device=columns.device)
    real = part.positions >= 0
    reach = (keys <= part.positions.amax(dim=1)[:, None]) & (keys < part.lengths[:, None])
    if part.window is not None:
        lowest = part.positions.masked_fill(~real, len(keys)).amin(dim=1)
        reach &= keys > lowest[:, None] - part.window
    return columns & reach[:, None]


def compact(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places that are set along the last dimension, in order, int64 [..., most], and which of them are real.

    What is padding repeats the last place, or 0 where there is none.
    """
    slots = columns.cumsum(dim=-1, dtype=torch.int32)
    counts = slots[..., -1:]
    most = max(1, int(counts.max()))
    # All that is not set goes to one slot more, which is cut off.
    target = torch.where(columns, slots - 1, most).long()
    keys = torch.arange(columns.shape[-1], device=columns.device).expand_as(target)
    places = torch.zeros((*columns.shape[:-1], most + 1), dtype=torch.int64, device=columns.device)
    places = places.scatter_(-1, target, keys)[..., :most].cummax(dim=-1).values
    return places, torch.arange(most, device=columns.device) < counts


def _seen(part: AttentionView, places: torch.Tensor) -> torch.Tensor:
    """Which of the places each query sees, bool [rows, heads, queries, n]."""
    at, key = part.positions[:, None, :, None], places[:, :, None]
    seen = key <= at
    return seen if part.window is None else seen & (key > at - part.window)


def _gather(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Entries of [rows, kv_heads, keys, dim] at [rows, heads, n]: only those are read."""
    rows, heads = places.shape[:2]
    row = torch.arange(rows, device=x.device)[:, None, None]
    head = torch.arange(heads, device=x.device)[:, None] * x.shape[1] // heads
    return x[row, head, places]


def _attend(part: AttentionView, places: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Attention of a tile over gathered keys, [rows, heads, queries, value_dim]."""
    count = places.shape[2]
    gathered = replace(
        part,
        key=_gather(part.key, places),
        value=_gather(part.value, places),
        positions=torch.where(part.positions >= 0, count - 1, -1),
        lengths=torch.full_like(part.lengths, count),
        window=None,
        aligned=False,
    )
    return attend_masked(gathered, per_head(keep, gathered))


def _union(part: AttentionView, places: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Keys read by any query head of a group, summed over queries and key heads; padding lies at place -1."""
    rows, kv_heads, keys = part.key.shape[:3]
    shape = (rows, kv_heads, keep.shape[2], keys + 1)
    read = torch.zeros(shape, dtype=torch.bool, device=keep.device)
    by_group = keep.reshape(rows, kv_heads, part.group, *keep.shape[2:])
    at = (places + 1).reshape(rows, kv_heads, part.group, 1, -1).expand(by_group.shape)
    for member in range(part.group):
        read |= torch.zeros_like(read).scatter_(3, at[:, :, member], by_group[:, :, member])
    return torch.count_nonzero(read)


def _decode(view: AttentionView, selection: Selection) -> tuple[torch.Tensor, Tally]:
    """Decode, query by query: gather what any head of a group reads, attend to it."""
    rows, heads, queries, width = view.query.shape
    out = view.query.new_zeros((rows, heads, queries, view.value.shape[-1]))
    tally = Tally()
    kv_heads, keys = view.key.shape[1:3]
    step = max(1, GATHERED // (rows * kv_heads * keys * width))
    for first in range(0, queries, step):
        part = part_of(view, first, min(first + step, queries))
        keep = selection.keep(part, first) & part.visible()
        count, length = part.query.shape[2], part.key.shape[2]
        by_key = keep.reshape(rows, -1, max(1, keep.shape[1] // kv_heads), count, length).any(dim=2)
        by_key = by_key.expand(-1, kv_heads, -1, -1)
        places, real = compact(by_key)
        chosen = per_head(keep, part).expand(-1, heads, -1, -1)
        asked = places if heads == kv_heads else places.repeat_interleave(view.group, dim=1)
        read = chosen.gather(3, asked) & real.repeat_interleave(view.group, dim=1)
        # Queries become rows of one query each, whose keys are their own.
        single = replace(
            part,
            query=part.query.transpose(1, 2).reshape(rows * count, heads, 1, width),
            key=_gather_each(part.key, places),
            value=_gather_each(part.value, places),
            positions=torch.where(part.positions >= 0, places.shape[-1] - 1, -1).reshape(-1, 1),
            lengths=part.lengths.repeat_interleave(count),
            window=None,
            aligned=False,
        )
        result = attend_masked(single, read.transpose(1, 2).reshape(rows * count, heads, 1, -1))
        out[:, :, first : first + step] = result.reshape(rows, count, heads, -1).transpose(1, 2)
        union = torch.count_nonzero(by_key)
        tally.add(Tally(torch.count_nonzero(chosen), union, view.group * union))
    return out, tally


def _gather_each(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Entries of [rows, kv_heads, keys, dim] at [rows, kv_heads, queries, n], as [rows * queries, kv_heads, n, dim]."""
    row = torch.arange(len(x), device=x.device)[:, None, None, None]
    head = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return x[row, head, places].transpose(1, 2).flatten(0, 1)
