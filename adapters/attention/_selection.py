"""Which keys queries read, by kind; slice by slice, so that long prompts never need all pairs at once.

`keep(part, first)` gives the mask of the queries of `part`, a slice of the view from its query `first` on, over the
keys of `part`: bool [rows, heads, queries, keys], with key heads (for all query heads of their group) or 1 (for all
heads) in the place of heads. It may name keys that a query does not see: the executor leaves them out.

`tile(part, first)`, of those that can be executed in prefill, says the same without a mask of all pairs; see `_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from sparsebench.adapters.attention._tiles import Tile, over_heads, pairs_at, shared_tile, tile_of
from sparsebench.engine.attention import AttentionView, Geometry

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.systems.counters import Amount


ASKED = frozenset({"cpu"})
"""Types of device of which a number can be asked without waiting for all that was given to it before."""


class Selection(Protocol):
    """A choice of keys for all queries of a view."""

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """The mask of a slice of the view; see the module's text."""
        ...

    @property
    def index_flops(self) -> Amount:
        """Work of choosing that depended on the data, beyond what the method's `index` says."""
        ...


@dataclass(frozen=True)
class SinkAndRecent:
    """The first keys and the last ones.

    Attributes:
        sinks: First keys that each query reads, [rows, queries].
        recent: Last keys that each query reads, its own among them, [rows, queries].
    """

    sinks: torch.Tensor
    recent: torch.Tensor
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        queries = slice(first, first + part.query.shape[2])
        at = part.positions[:, None, :, None]
        keys = torch.arange(part.key.shape[2], device=at.device)
        sinks, recent = self.sinks[:, None, queries, None], self.recent[:, None, queries, None]
        return (keys < sinks) | (keys > at - recent)

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        queries = slice(first, first + part.query.shape[2])
        sinks, last = self.sinks[:, queries], part.positions - self.recent[:, queries]
        keys = torch.arange(part.key.shape[2], device=last.device)
        lowest = last.masked_fill(part.positions < 0, len(keys)).amin(dim=1)
        columns = (keys < sinks.amax(dim=1)[:, None]) | (keys > lowest[:, None])

        def pairs(places: torch.Tensor) -> torch.Tensor:
            at = places[:, :, None]
            return (at < sinks[:, None, :, None]) | (at > last[:, None, :, None])

        return Tile(columns[:, None], pairs)


@dataclass(frozen=True)
class TopTokens:
    """The keys with the highest scores, each query by itself; of equal ones the first.

    Attributes:
        score: Scores of a slice, [rows, heads, queries, keys], or with key heads or 1 in the place of heads.
        counts: Keys that each query reads, [rows, queries]; never more than it sees.
        most: See `top_mask`.
    """

    score: Callable[[AttentionView], torch.Tensor]
    counts: torch.Tensor
    index_flops: Amount = 0.0
    most: int | None = None

    @classmethod
    def within(
        cls, allowance: Allowance, view: AttentionView, score: Callable[[AttentionView], torch.Tensor]
    ) -> TopTokens:
        """As many keys as an allowance gives the queries of a view."""
        return cls(score, allowance.counts(view), most=allowance.most(view))

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        scores = self.score(part).masked_fill(~part.visible(), -torch.inf)
        return top_mask(scores, self.counts[:, None, first : first + part.query.shape[2]], self.most)


@dataclass(frozen=True)
class ByQuery:
    """Whatever a rule says of a slice, each query by itself.

    Attributes:
        rule: The mask of a slice, [rows, heads, queries, keys], or with key heads or 1 in the place of heads.
    """

    rule: Callable[[AttentionView], torch.Tensor]
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        return self.rule(part)


@dataclass(frozen=True)
class Pages:
    """Whole pages of keys, each query by itself.

    Attributes:
        chosen: Bool [rows, heads, queries, pages], or with key heads or 1 in the place of heads.
        size: Keys of a page; page j holds the keys from j * size on.
    """

    chosen: torch.Tensor
    size: int
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        page = torch.arange(part.key.shape[2], device=self.chosen.device) // self.size
        return self.chosen[:, :, first : first + part.query.shape[2]].index_select(3, page)


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries by keys, of one row.

    Attributes:
        chosen: Bool [heads, query_blocks, key_blocks], or with key heads or 1 in the place of heads; query block i
            holds the positions from (first_block + i) * size on.
        size: Queries and keys of a block.
        first_block: Block of the first query.
    """

    chosen: torch.Tensor
    size: int
    first_block: int = 0
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        rows = part.positions[0] // self.size - self.first_block
        columns = torch.arange(part.key.shape[2], device=rows.device) // self.size
        return self.chosen.index_select(1, rows).index_select(2, columns)[None]

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        return shared_tile(self.chosen, part, self.size, self.first_block, self.size)


@dataclass(frozen=True)
class VerticalSlash:
    """Columns and diagonals, of one row.

    Attributes:
        columns: Keys that every query reads, bool [heads, keys].
        diagonals: Distances at which every query reads, bool [heads, distances]; distance 0 is the query's own key.
    """

    columns: torch.Tensor
    diagonals: torch.Tensor
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        keys, positions = part.key.shape[2], part.positions[0]
        # Row i of the slashes is the diagonals from its own key backwards: a window that moves along them reversed.
        backwards = self.diagonals[:, : int(part.geometry.positions[0, -1]) + 1].flip(-1)
        windows = torch.nn.functional.pad(backwards, (0, keys)).unfold(-1, keys, 1)
        slashes = windows[:, : len(positions)].flip(1)
        return (slashes | self.columns[:, None, :keys])[None]

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        positions = part.positions[0]
        keys = torch.arange(part.key.shape[2], device=positions.device)
        before = torch.nn.functional.pad(self.diagonals.int().cumsum(dim=-1, dtype=torch.int32), (1, 0))
        near, far = (positions[0] - keys).clamp(min=0), (positions[-1] - keys).clamp(min=-1) + 1
        crossed = before[:, far] > before[:, near]
        heads = torch.arange(len(self.columns), device=positions.device)[:, None]

        def pairs(places: torch.Tensor) -> torch.Tensor:
            apart = (positions[:, None] - places[0][:, None]).clamp(min=0)
            along = self.diagonals[:, None].expand(-1, len(positions), -1).gather(2, apart)
            return (along | self.columns[heads, places[0]][:, None])[None]

        return Tile((crossed | self.columns[:, : len(keys)])[None], pairs)


@dataclass(frozen=True)
class Stripes:
    """Columns of keys that a group of queries shares, of one row.

    Attributes:
        chosen: Bool [heads, groups, keys].
        size: Queries of a group; group i holds the positions from (first_group + i) * size on.
        first_group: Group of the first query.
    """

    chosen: torch.Tensor
    size: int
    first_group: int = 0
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        groups = part.positions[0] // self.size - self.first_group
        return self.chosen[:, :, : part.key.shape[2]].index_select(1, groups)[None]

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        return shared_tile(self.chosen, part, self.size, self.first_group, 1)


@dataclass(frozen=True)
class Given:
    """A mask that is there already, [rows, heads, queries, keys], or with key heads or 1 in the place of heads."""

    mask: torch.Tensor
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        return self.mask[:, :, first : first + part.query.shape[2], : part.key.shape[2]]


@dataclass(frozen=True)
class ByRow:
    """One selection for each row, made without the padding."""

    rows: list[Selection]
    starts: list[int]

    @property
    def index_flops(self) -> Amount:
        """See `Selection`."""
        return total([row.index_flops for row in self.rows])

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        shape = (*part.query.shape[:3], part.key.shape[2])
        mask = torch.zeros(shape, dtype=torch.bool, device=part.query.device)
        for row, (selection, start) in enumerate(zip(self.rows, self.starts, strict=True)):
            own, real = alone(part, row), queries_of(part, row)
            if own.query.shape[2]:
                chosen = selection.keep(own, int(own.geometry.positions[0, 0]) - start)
                mask[row][:, real, : own.key.shape[2]] = per_head(chosen, own)[0]
        return mask

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        heads, queries, keys = *part.query.shape[1:3], part.key.shape[2]
        columns = torch.zeros((len(self.rows), heads, keys), dtype=torch.bool, device=part.query.device)
        tiles: dict[int, tuple[Tile, int]] = {}
        for row, (selection, start) in enumerate(zip(self.rows, self.starts, strict=True)):
            own = alone(part, row)
            if own.query.shape[2]:
                tile = tile_of(selection, own, int(own.geometry.positions[0, 0]) - start)
                columns[row, :, : own.key.shape[2]] = over_heads(tile.columns, own)[0]
                tiles[row] = tile, own.key.shape[2]

        def pairs(places: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros((*places.shape[:2], queries, places.shape[2]), dtype=torch.bool, device=places.device)
            for row, (tile, length) in tiles.items():
                chosen = pairs_at(tile, places[row : row + 1].clamp(max=length - 1), part)
                mask[row][:, queries_of(part, row)] = chosen[0]
            return mask

        return Tile(columns, pairs)


def total(amounts: Sequence[Amount]) -> Amount:
    """Their sum."""
    found: Amount = 0.0
    for amount in amounts:
        found = found + amount
    return found


def by_row(view: AttentionView, select: Callable[[AttentionView], Selection]) -> Selection:
    """Select for each row by itself, so that neither padding nor other rows have a part in it."""
    known = view.geometry
    if len(known.lengths) == 1 and (known.positions >= 0).all() and known.lengths[0] == view.key.shape[2]:
        return select(view)
    rows, starts = [], []
    for row in range(view.query.shape[0]):
        own = alone(view, row)
        empty = own.query.shape[2] == 0
        rows.append(Given(torch.zeros((1, 1, 0, 0), dtype=torch.bool)) if empty else select(own))
        starts.append(0 if empty else int(own.geometry.positions[0, 0]))
    return ByRow(rows, starts)


def queries_of(view: AttentionView, row: int) -> slice:
    """Where the queries of a row lie: they stand side by side, with padding on one side at most."""
    real = np.flatnonzero(view.geometry.positions[row] >= 0)
    first = int(real[0]) if len(real) else 0
    return slice(first, first + len(real))


def alone(view: AttentionView, row: int) -> AttentionView:
    """One row of a view, without its padding."""
    real = queries_of(view, row)
    known = view.geometry
    length = min(int(known.lengths[row]), view.key.shape[2])
    positions = view.positions[row : row + 1, real]
    lengths = view.lengths[row : row + 1].clamp(max=length)
    return replace(
        view,
        query=view.query[row : row + 1, :, real],
        key=view.key[row : row + 1, :, :length],
        value=view.value[row : row + 1, :, :length],
        positions=positions,
        lengths=lengths,
        states=view.states[row : row + 1],
        aligned=positions.shape[1] == length,
        known=Geometry(known.positions[row : row + 1, real], np.array([length]), (positions, lengths)),
    )


def part_of(view: AttentionView, first: int, last: int) -> AttentionView:
    """The queries from `first` to before `last`, with no key beyond what the last of them sees."""
    known = view.geometry
    there = known.positions[:, first:last]
    keys = max(1, int(there.max()) + 1)
    if first == 0 and last >= view.query.shape[2] and keys == view.key.shape[2]:
        return view
    positions = view.positions[:, first:last]
    lengths = view.lengths.clamp(max=keys)
    return replace(
        view,
        query=view.query[:, :, first:last],
        key=view.key[:, :, :keys],
        value=view.value[:, :, :keys],
        positions=positions,
        lengths=lengths,
        aligned=False,
        known=Geometry(there, known.lengths.clip(max=keys), (positions, lengths)),
    )


def per_head(mask: torch.Tensor, view: AttentionView) -> torch.Tensor:
    """A mask with key heads, or 1, in the place of heads, for all query heads."""
    heads, kv_heads = view.query.shape[1], view.key.shape[1]
    if mask.shape[1] == kv_heads and kv_heads != heads:
        return mask.repeat_interleave(view.group, dim=1)
    return mask


def top_mask(scores: torch.Tensor, counts: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """The `counts` highest scores along the last dimension, bool; of equal scores the first.

    Args:
        scores: [..., n], without NaN.
        counts: How many of each, broadcastable to [...]; at most n.
        most: A number that no count exceeds, where the caller knows one: a device would have to be asked.
    """
    keys = scores.shape[-1]
    if scores.device.type == "cuda" and scores.dtype == torch.float32 and (kernel := _kernel(keys)) is not None:
        return kernel(scores, counts)
    most = _largest(counts) if most is None else most
    most = keys if most is None else min(most, keys)
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    counts = counts.expand(scores.shape[:-1])[..., None]
    ranked = scores.topk(most, dim=-1).values
    threshold = ranked.gather(-1, (counts - 1).clamp(min=0))
    above, tied = scores > threshold, scores == threshold
    room = counts - above.sum(dim=-1, keepdim=True)
    # A processor looks first whether there are too many.
    if tied.device.type not in ASKED or bool((tied.sum(dim=-1, keepdim=True) > room).any()):
        tied &= tied.cumsum(dim=-1, dtype=torch.int32) <= room
    return (above | tied) & (counts > 0)


@lru_cache(maxsize=64)
def _kernel(keys: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """What does the same in one kernel, where Triton is there and rows are not too long."""
    try:
        from sparsebench.kernels.selection import WIDEST, select_mask
    except ImportError:
        return None
    return select_mask if 0 < keys <= WIDEST else None


def _largest(counts: torch.Tensor) -> int | None:
    """The largest count; None where one would have to wait for it."""
    if counts.device.type not in ASKED:
        return None
    return int(counts.max()) if counts.numel() else 0


def cover_mask(mass: torch.Tensor, coverage: float | torch.Tensor) -> torch.Tensor:
    """The fewest entries along the last dimension that hold a share of its sum, bool; of equal ones the first.

    Args:
        mass: [..., n], not negative.
        coverage: Share of the sum; at 1 everything is kept.
    """
    if not isinstance(coverage, torch.Tensor) and coverage >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    ranked, order = mass.double().sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1) - ranked
    needed = before < coverage * ranked.sum(dim=-1, keepdim=True)
    return torch.zeros_like(needed).scatter(-1, order, needed)


def sink_and_recent(view: AttentionView, counts: torch.Tensor, sinks: int | torch.Tensor) -> SinkAndRecent:
    """The first `sinks` keys and the last ones, `counts` [rows, queries] in all.

    A query's own key comes first, then the sinks; sinks outside a layer's window leave their room to recent keys.
    """
    room = (counts - 1).clamp(min=0)
    first = room.clamp(max=sinks) if isinstance(sinks, int) else torch.minimum(sinks.expand_as(room), room)
    hidden = torch.zeros_like(counts) if view.window is None else (view.positions + 1 - view.window).clamp(min=0)
    return SinkAndRecent(first, counts - (first - hidden).clamp(min=0))
