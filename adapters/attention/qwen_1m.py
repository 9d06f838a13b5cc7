"""The sparse prefill of Qwen2.5-1M: vertical-slash chunk by chunk, with budgets raised until enough is covered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Setting, scaled
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection, VerticalSlash
    from sparsebench.adapters.attention._tiles import Tile
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class Qwen1M(AttentionAdapter):
    """Columns and diagonals of each chunk of a prompt, as few for each head as cover a share of attention."""

    card: ClassVar[MethodCard] = MethodCard(
        id="qwen-1m",
        family="attention",
        title="Qwen2.5-1M sparse prefill",
        summary="In prefill each chunk of the prompt has columns and diagonals by its own last queries, as many for "
        "each head as hold a share of those queries' attention.",
        paper=Paper(
            title="Qwen2.5-1M Technical Report",
            authors="An Yang and Bowen Yu and Chengyuan Li and Dayiheng Liu and Fei Huang and others",
            year=2025,
            venue="arXiv:2501.15383",
            url="https://arxiv.org/abs/2501.15383",
            key="yang2025qwen1m",
        ),
        unit="token",
        phases=("prefill",),
        adaptivity="coverage",
        budgets=("coverage",),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="vertical-slash",
        differs="looks at the last queries of every chunk, and raises a head's budget until its recall is reached",
        deviations=(
            "budgets are refined for each prompt and chunk; the report refines them once, on a calibration text",
            "`scaled` cuts a prompt into eight chunks; `paper` always into chunks of 32,768 tokens",
            "of a budget one in seven is columns, as in the released default of MInference",
        ),
    )

    queries: int = Field(64, ge=1)
    """Queries at the end of a chunk whose attention is looked at."""
    chunk: int = Field(32_768, ge=1)
    """Tokens of a chunk in the paper's setting."""
    slashes: float = Field(6.096, ge=0)
    """Diagonals for each column."""
    first: int = Field(30, ge=0)
    """First columns that come before all others."""
    near: int = Field(100, ge=1)
    """Nearest diagonals that come before all others."""
    setting: Setting = "scaled"

    def edges(self, start: int, end: int) -> list[int]:
        """Where the chunks of the queries from `start` on begin, and where the last one ends."""
        size = self.chunk if self.setting == "paper" else min(self.chunk, max(self.queries, end // 8))
        return [start, *range((start // size + 1) * size, end, size), end]

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Scores of the last queries of each chunk."""
        edges = self.edges(start, start + count)
        flops = read = 0.0
        for begin, end in pairwise(edges):
            queries = min(self.queries, end - begin)
            keys = end if window is None else min(end, window + queries)
            flops += 2.0 * shape.heads * shape.head_dim * queries * keys
            read += keys * shape.kv_heads * shape.key_bytes / 2
        return flops, read

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_row

        return by_row(view, lambda row: self._select_row(row, allowance.coverage or 1.0))

    def _select_row(self, row: AttentionView, coverage: float) -> Selection:
        start, length = int(row.geometry.positions[0, 0]), row.key.shape[2]
        edges = self.edges(start, length)
        chosen = [
            self._select_chunk(_queries(row, begin - start, end - start), length, coverage)
            for begin, end in pairwise(edges)
        ]
        return Chunks(chosen, edges)

    def _select_chunk(self, chunk: AttentionView, length: int, coverage: float) -> VerticalSlash:
        import torch

        from sparsebench.adapters.attention import _selection
        from sparsebench.adapters.attention._estimate import attention_weights, last_queries
        from sparsebench.adapters.attention.vertical_slash import ranks, sums_by_column_and_diagonal

        last = last_queries(chunk, self.queries)
        weights = attention_weights(last)
        vertical, slash = (x[0] for x in sums_by_column_and_diagonal(weights, last.positions))
        weights = weights[0]
        first, near = scaled(self.first, length, self.setting), scaled(self.near, length, self.setting)
        columns, diagonals = ranks(vertical, first if self.first else 0), ranks(slash, near)
        keys = torch.arange(weights.shape[2], device=weights.device)
        distance = (last.positions[0][:, None] - keys).clamp(min=0)
        along = diagonals[:, distance]  # the rank of the diagonal on which each pair lies

        def recall(budget: torch.Tensor) -> torch.Tensor:
            verticals, slashes = self._divide(budget)
            kept = (along < slashes[:, None, None]) | (columns < verticals[:, None])[:, None]
            return (weights * kept).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-30)

        low = torch.zeros(len(columns), dtype=torch.int64, device=columns.device)
        high = low + int((1 + self.slashes) * columns.shape[1]) + 1
        while coverage < 1 and bool((high - low > 1).any()):
            middle = (low + high) // 2
            enough = recall(middle) >= coverage
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        verticals, slashes = self._divide(high)
        return _selection.VerticalSlash((columns < verticals[:, None])[None], (diagonals < slashes[:, None])[None])

    def _divide(self, budget: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        verticals = (budget / (1 + self.slashes)).long()
        return verticals, (budget - verticals).clamp(min=1)


@dataclass(frozen=True)
class Chunks:
    """A selection for each chunk of the queries of one row.

    Attributes:
        chosen: One for each chunk.
        edges: Positions at which the chunks begin, and where the last one ends.
    """

    chosen: list[VerticalSlash]
    edges: list[int]
    index_flops: float = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        import torch

        mask = torch.zeros((*part.query.shape[:3], part.key.shape[2]), dtype=torch.bool, device=part.query.device)
        start = int(part.geometry.positions[0, 0])
        end = start + part.query.shape[2]
        for selection, begin, after in zip(self.chosen, self.edges, self.edges[1:], strict=False):
            low, high = max(begin, start), min(after, end)
            if low < high:
                own = _queries(part, low - start, high - start)
                mask[:, :, low - start : high - start, : own.key.shape[2]] = selection.keep(own, 0)
        return mask

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        import torch

        from sparsebench.adapters.attention._tiles import Tile

        start = int(part.geometry.positions[0, 0])
        end = start + part.query.shape[2]
        tiles = []
        for selection, begin, after in zip(self.chosen, self.edges, self.edges[1:], strict=False):
            low, high = max(begin, start), min(after, end)
            if low < high:
                own = _queries(part, low - start, high - start)
                tiles.append((selection.tile(own, 0), own.key.shape[2]))
        columns = torch.stack(
            [torch.nn.functional.pad(tile.columns, (0, part.key.shape[2] - keys)) for tile, keys in tiles]
        ).any(dim=0)

        def pairs(places: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [tile.pairs(places.clamp(max=keys - 1)) & (places < keys)[:, :, None] for tile, keys in tiles], dim=2
            )

        return Tile(columns, pairs)


def _queries(row: AttentionView, first: int, last: int) -> AttentionView:
    """Some queries of a row without padding, with the keys that they see."""
    positions = row.positions[:, first:last]
    keys = int(positions[0, -1]) + 1
    return replace(
        row,
        query=row.query[:, :, first:last],
        key=row.key[:, :, :keys],
        value=row.value[:, :, :keys],
        positions=positions,
        lengths=row.lengths.clamp(max=keys),
        aligned=False,
    )
