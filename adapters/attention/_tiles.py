"""What a tile of queries reads, named by keys and not by pairs: what prefill is executed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from sparsebench.engine.attention import AttentionView
from sparsebench.errors import InputError


@dataclass(frozen=True)
class Tile:
    """What some queries that stand side by side read, by key.

    Attributes:
        columns: Keys that at least one of them may read, bool [rows, heads, keys]; 1 in the place of rows or heads says
            the same for all, and so do key heads for the query heads of their group.
        pairs: Which of some keys each of them reads: from places int64 [rows, heads, n], with heads as in `columns`, to
            bool [rows, heads, queries, n], where 1 may again stand for all.
    """

    columns: torch.Tensor
    pairs: Callable[[torch.Tensor], torch.Tensor]


@runtime_checkable
class Tiled(Protocol):
    """A selection that can be executed in prefill: it names keys without a mask of all pairs."""

    def tile(self, part: AttentionView, first: int) -> Tile:
        """What the queries of a slice of the view read; see `_selection.Selection`."""
        ...


def tile_of(selection: object, part: AttentionView, first: int) -> Tile:
    """What a slice of queries reads, of a selection that can be executed.

    Raises:
        InputError: It cannot be.
    """
    if isinstance(selection, Tiled):
        return selection.tile(part, first)
    raise InputError(
        f"{type(selection).__name__}: keys that each query chooses by itself cannot be executed in prefill",
        "run the method with mode: simulated, or in decode alone with phase: decode",
    )


def over_heads(columns: torch.Tensor, view: AttentionView) -> torch.Tensor:
    """Columns of a tile for all query heads, [rows, heads, keys]."""
    heads = view.query.shape[1]
    if columns.shape[1] == heads:
        return columns
    return columns.repeat_interleave(heads // columns.shape[1], dim=1)


def pairs_at(tile: Tile, places: torch.Tensor, view: AttentionView) -> torch.Tensor:
    """The pairs of a tile at places of all query heads, [rows, heads, queries, n]; for any form of the tile's heads."""
    own, heads = tile.columns.shape[1], view.query.shape[1]
    if own in (1, heads):
        return tile.pairs(places)
    # Heads of a group read alike but are asked at places of their own: those of all of them are asked of the group.
    asked = places.reshape(len(places), own, -1)
    found = tile.pairs(asked)
    split = found.reshape(*found.shape[:3], heads // own, -1).transpose(2, 3)
    return split.reshape(len(places), heads, found.shape[2], -1)


def tiles_by_head(tiles: list[Tile | None], which: torch.Tensor, view: AttentionView) -> Tile:
    """One tile out of several, of which each query head has one.

    Args:
        tiles: None where no head has it.
        which: The number of each query head's tile, [heads].
        view: The queries.
    """
    which = which.to(view.query.device)
    shape = (view.query.shape[0], view.query.shape[1], view.key.shape[2])
    columns = torch.zeros(shape, dtype=torch.bool, device=view.query.device)
    for number, tile in enumerate(tiles):
        if tile is not None:
            own = which == number
            columns[:, own] = over_heads(tile.columns, view).expand(len(columns), -1, -1)[:, own]

    def pairs(places: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(
            (*places.shape[:2], view.query.shape[2], places.shape[2]), dtype=torch.bool, device=places.device
        )
        for number, tile in enumerate(tiles):
            if tile is not None:
                own = which == number
                mask[:, own] = pairs_at(tile, places, view).expand(*mask.shape)[:, own]
        return mask

    return Tile(columns, pairs)


def shared_tile(chosen: torch.Tensor, part: AttentionView, size: int, first: int, width: int) -> Tile:
    """The tile of one row in which `size` queries share blocks of `width` keys.

    See `_selection.Blocks` and `_selection.Stripes`.
    """
    rows = part.positions[0] // size - first
    blocks = chosen[:, int(rows[0]) : int(rows[-1]) + 1]
    keys = torch.arange(part.key.shape[2], device=rows.device) // width
    heads = torch.arange(len(chosen), device=rows.device)[:, None]
    columns = blocks.any(dim=1).index_select(1, keys)[None]

    def pairs(places: torch.Tensor) -> torch.Tensor:
        if blocks.shape[1] == 1:
            return columns[0][heads, places[0]][None, :, None]
        found = blocks.transpose(1, 2)[heads, places[0] // width]  # [heads, n, blocks]
        return found.index_select(2, rows - rows[0]).transpose(1, 2)[None]

    return Tile(columns, pairs)
