"""Rows of a batch that begin together, slices of them, and selections that are made of each run of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch

from sparsebench.adapters.attention._tiles import Tile, over_heads, pairs_at, tile_of
from sparsebench.engine.attention import AttentionView, Geometry

if TYPE_CHECKING:
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.systems.counters import Amount

SLICE = 256
"""Queries whose attention weights are held at a time."""
HELD = {"cpu": 2**20, "cuda": 2**26}
"""Rows x heads x queries of a slice x keys for which something is chosen at a time, by type of device."""


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


def places_of(part: AttentionView) -> np.ndarray:
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
