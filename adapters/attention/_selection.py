"""Which keys queries read, by kind; slice by slice, so that long prompts never need all pairs at once.

`keep(part, first)` gives the mask of the queries of `part`, a slice of the view from its query `first` on, over the
keys of `part`: bool [rows, heads, queries, keys], with key heads (for all query heads of their group) or 1 (for all
heads) in the place of heads. It may name keys that a query does not see: the executor leaves them out.

`tile(part, first)`, of those that can be executed in prefill, says the same without a mask of all pairs; see `_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from sparsebench.adapters.attention._rows import places_of
from sparsebench.adapters.attention._tiles import Tile, shared_tile
from sparsebench.engine import fused
from sparsebench.engine.attention import AttentionView
from sparsebench.engine.attention import scores as attention_scores
from sparsebench.engine.transfer import sent
from sparsebench.errors import InputError

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
        counts = self.counts[:, first : first + part.query.shape[2]]
        if self.score is attention_scores and (chosen := fused.top_keys(part, counts)) is not None:
            return chosen
        scores, counts = self.score(part), counts[:, None]
        if (chosen := fused.top_mask(scores, counts, part.seen_range())) is not None:
            return chosen
        scores = scores.masked_fill(~part.visible(), -torch.inf)
        if scores.device.type in ASKED and bool(scores.isnan().any()):
            raise InputError(f"scores of keys in layer {part.layer} are not all numbers (NaN): they rank nothing")
        return top_mask(scores, counts, self.most)


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
            memo[key] = sent(places_of(part) // self.size - self.first_block, self.chosen.device), columns
        rows, columns = memo[key]
        return self.chosen.index_select(2, rows).index_select(3, columns)

    def of_row(self, row: int) -> Blocks:
        """See `_rows.Together`."""
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
        keys, queries, last = part.key.shape[2], part.query.shape[2], int(places_of(part)[-1])
        # Row i of the slashes is the diagonals from its own key backwards: a window that moves along them reversed.
        backwards = self.diagonals[..., : last + 1].flip(-1)
        windows = torch.nn.functional.pad(backwards, (0, keys)).unfold(-1, keys, 1)
        return windows[..., :queries, :].flip(-2) | self.columns[..., None, :keys]

    def of_row(self, row: int) -> VerticalSlash:
        """See `_rows.Together`."""
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


def top_mask(scores: torch.Tensor, counts: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """The `counts` highest scores along the last dimension, bool; of equal scores the first.

    Args:
        scores: [..., n], without NaN.
        counts: How many of each, broadcastable to [...]; at most n.
        most: A number that no count exceeds, where the caller knows one: a device would have to be asked.
    """
    keys = scores.shape[-1]
    if (chosen := fused.top_mask(scores, counts)) is not None:
        return chosen
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
