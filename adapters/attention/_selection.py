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
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch

from sparsebench.adapters.attention._tiles import Tile, over_heads, pairs_at, shared_tile, tile_of
from sparsebench.engine.attention import AttentionView, Geometry
from sparsebench.engine.transfer import sent

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.systems.counters import Amount


SLICE = 256
"""Queries whose attention weights are held at a time."""
HELD = {"cpu": 2**20, "cuda": 2**26}
"""Rows x heads x queries of a slice x keys for which something is chosen at a time, by type of device."""
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
    """Blocks of queries by keys, of rows that begin together.

    Attributes:
        chosen: Bool [rows, heads, query_blocks, key_blocks], or with key heads or 1 in the place of heads; query block
            i holds the positions from (first_block + i) * size on.
        size: Queries and keys of a block.
        first_block: Block of the first query.
    """

    chosen: torch.Tensor
    size: int
    first_block: int = 0
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        memo, key = part.geometry.memo, ("blocks", self.size, self.first_block, part.key.shape[2])
        if key not in memo:
            columns = torch.arange(part.key.shape[2], device=self.chosen.device) // self.size
            memo[key] = sent(_places(part) // self.size - self.first_block, self.chosen.device), columns
        rows, columns = memo[key]
        return self.chosen.index_select(2, rows).index_select(3, columns)

    def of_row(self, row: int) -> Blocks:
        """See `Together`."""
        return Blocks(self.chosen[row : row + 1], self.size, self.first_block)

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`; of one row."""
        return shared_tile(self.chosen[0], part, self.size, self.first_block, self.size)


@dataclass(frozen=True)
class VerticalSlash:
    """Columns and diagonals, of rows that begin together.

    Attributes:
        columns: Keys that every query reads, bool [rows, heads, keys].
        diagonals: Distances at which every query reads, bool [rows, heads, distances]; distance 0 is its own key.
    """

    columns: torch.Tensor
    diagonals: torch.Tensor
    index_flops: Amount = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        keys, queries, last = part.key.shape[2], part.query.shape[2], int(_places(part)[-1])
        # Row i of the slashes is the diagonals from its own key backwards: a window that moves along them reversed.
        backwards = self.diagonals[..., : last + 1].flip(-1)
        windows = torch.nn.functional.pad(backwards, (0, keys)).unfold(-1, keys, 1)
        return windows[..., :queries, :].flip(-2) | self.columns[..., None, :keys]

    def of_row(self, row: int) -> VerticalSlash:
        """See `Together`."""
        return VerticalSlash(self.columns[row : row + 1], self.diagonals[row : row + 1])

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`; of one row."""
        positions, columns, diagonals = part.positions[0], self.columns[0], self.diagonals[0]
        keys = torch.arange(part.key.shape[2], device=positions.device)
        before = torch.nn.functional.pad(diagonals.int().cumsum(dim=-1, dtype=torch.int32), (1, 0))
        near, far = (positions[0] - keys).clamp(min=0), (positions[-1] - keys).clamp(min=-1) + 1
        crossed = before[:, far] > before[:, near]
        heads = torch.arange(len(columns), device=positions.device)[:, None]

        def pairs(places: torch.Tensor) -> torch.Tensor:
            apart = (positions[:, None] - places[0][:, None]).clamp(min=0)
            along = diagonals[:, None].expand(-1, len(positions), -1).gather(2, apart)
            return (along | columns[heads, places[0]][:, None])[None]

        return Tile((crossed | columns[:, : len(keys)])[None], pairs)


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
class Run:
    """Rows side by side whose queries begin at the same position.

    Attributes:
        rows: Where they lie in the view.
        queries: Where their queries lie; those of a row may end before those of another.
    """

    rows: slice
    queries: slice


class Together(Protocol):
    """A selection of rows that begin together, of which each row has its own."""

    def of_row(self, row: int) -> Selection:
        """What one of them reads."""
        ...


@dataclass(frozen=True)
class ByRun:
    """A selection for each run of rows, made without padding before them and without the other runs."""

    runs: list[Run]
    chosen: list[Selection]

    @property
    def index_flops(self) -> Amount:
        """See `Selection`."""
        return total([chosen.index_flops for chosen in self.chosen])

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `Selection`."""
        shape = (*part.query.shape[:3], part.key.shape[2])
        mask = torch.zeros(shape, dtype=torch.bool, device=part.query.device)
        for run, selection in zip(self.runs, self.chosen, strict=True):
            low, high = run.queries.start - first, min(run.queries.stop - first, shape[2])
            if max(low, 0) < high:
                own = of_run(part, Run(run.rows, slice(max(low, 0), high)))
                kept = per_head(selection.keep(own, max(-low, 0)), own)
                if kept.shape == shape:
                    return kept
                mask[run.rows, :, max(low, 0) : high, : own.key.shape[2]] = kept
        return mask

    def by_row(self, rows: int) -> list[Selection | None]:
        """The selection of each row; None where it has no queries."""
        found: list[Selection | None] = [None] * rows
        for run, selection in zip(self.runs, self.chosen, strict=True):
            for row in range(run.rows.start, run.rows.stop):
                alone = run.rows.stop - run.rows.start == 1
                found[row] = selection if alone else cast("Together", selection).of_row(row - run.rows.start)
        return found

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        heads, queries, keys = *part.query.shape[1:3], part.key.shape[2]
        columns = torch.zeros((len(part.query), heads, keys), dtype=torch.bool, device=part.query.device)
        tiles: dict[int, tuple[Tile, int]] = {}
        before = {row: run.queries.start for run in self.runs for row in range(run.rows.start, run.rows.stop)}
        for row, selection in enumerate(self.by_row(len(part.query))):
            own = alone(part, row)
            if selection is not None and own.query.shape[2]:
                tile = tile_of(selection, own, max(first - before[row], 0))
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
    return _by_run(view, select, most=1)


def by_start(view: AttentionView, select: Callable[[AttentionView], Selection]) -> Selection:
    """Select for rows that begin at the same position together.

    `select` is given rows that are padded on the right alone, and gives each what it would give that row by itself; its
    selection is of all of them, see `Together`.
    """
    held = view.query.shape[1] * min(view.query.shape[2], SLICE) * view.key.shape[2]
    return _by_run(view, select, most=max(1, HELD.get(view.query.device.type, HELD["cpu"]) // held))


def _by_run(view: AttentionView, select: Callable[[AttentionView], Selection], most: int) -> Selection:
    known = view.geometry
    if len(known.lengths) == 1 and (known.positions >= 0).all() and known.lengths[0] == view.key.shape[2]:
        return select(view)
    if ("runs", most) not in known.memo:
        known.memo["runs", most] = runs_of(view, most)
    runs: list[Run] = known.memo["runs", most]
    return ByRun(runs, [select(of_run(view, run)) for run in runs])


def runs_of(view: AttentionView, most: int) -> list[Run]:
    """The rows that have queries, as runs of at most so many rows."""
    runs: list[Run] = []
    begun = -1
    positions = view.geometry.positions
    for row in range(len(positions)):
        real = queries_of(view, row)
        if real.start == real.stop:
            continue
        start, last = int(positions[row, real.start]), runs[-1] if runs else None
        alike = last is not None and start == begun and real.start == last.queries.start and last.rows.stop == row
        if last is not None and alike and row - last.rows.start < most:
            ends = slice(real.start, max(real.stop, last.queries.stop))
            runs[-1] = Run(slice(last.rows.start, row + 1), ends)
        else:
            runs.append(Run(slice(row, row + 1), real))
        begun = start
    return runs


def of_run(view: AttentionView, run: Run) -> AttentionView:
    """The queries of a run, with no key beyond what the last of them sees."""
    known = view.geometry
    memo, key = known.memo, ("run", run.rows.start, run.rows.stop, run.queries.start, run.queries.stop)
    if key not in memo:
        there = known.positions[run.rows, run.queries]
        keys = min(int(there.max()) + 1, view.key.shape[2])
        at = view.positions[run.rows, run.queries], view.lengths[run.rows].clamp(max=keys)
        memo[key] = Geometry(there, known.lengths[run.rows].clip(max=keys), at)
    own: Geometry = memo[key]
    keys = int(own.positions.max()) + 1
    return replace(
        view,
        query=view.query[run.rows, :, run.queries],
        key=view.key[run.rows, :, :keys],
        value=view.value[run.rows, :, :keys],
        positions=own.of[0],
        lengths=own.of[1],
        states=view.states[run.rows],
        aligned=own.positions.shape[1] == keys and bool((own.positions >= 0).all()),
        known=own,
    )


def _places(part: AttentionView) -> np.ndarray:
    """The position of each query of rows that begin together, int64 [queries]."""
    places: np.ndarray = part.geometry.positions.max(axis=0)
    return places


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
    memo, key = known.memo, ("part", first, last)
    if key not in memo:  # the same in all layers
        there = known.positions[:, first:last]
        keys = max(1, int(there.max()) + 1)
        at = view.positions[:, first:last], view.lengths.clamp(max=keys)
        memo[key] = keys, Geometry(there, known.lengths.clip(max=keys), at)
    keys, own = memo[key]
    if first == 0 and last >= view.query.shape[2] and keys == view.key.shape[2]:
        return view
    return replace(
        view,
        query=view.query[:, :, first:last],
        key=view.key[:, :, :keys],
        value=view.value[:, :, :keys],
        positions=own.of[0],
        lengths=own.of[1],
        aligned=False,
        known=own,
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
