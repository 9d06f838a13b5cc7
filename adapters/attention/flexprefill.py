"""FlexPrefill: per head, vertical-slash blocks or a pooled block map, each up to a share of attention."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Setting, scaled
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._blocks import Grid
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class FlexPrefill(AttentionAdapter):
    """Blocks that hold a share of the attention, as estimated from the last block of queries or from pooled blocks."""

    card: ClassVar[MethodCard] = MethodCard(
        id="flexprefill",
        version=2,
        family="attention",
        title="FlexPrefill",
        summary="Heads whose pooled estimate agrees with the last queries' attention take blocks from the pooled map; "
        "the others columns and diagonals of blocks; both until a share of attention is covered.",
        paper=Paper(
            title="FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference",
            authors="Xunhao Lai and Jianqiao Lu and Yao Luo and Yiyuan Ma and Xun Zhou",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2502.20766",
            key="lai2025flexprefill",
        ),
        unit="block",
        phases=("prefill",),
        adaptivity="coverage",
        budgets=("coverage",),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="vertical-slash",
        differs="chooses a pattern for each head by a Jensen-Shannon distance, and blocks up to a share of attention",
        deviations=(
            "blocks of 32, not 128: with 128, sink and diagonal alone fill most of a short prompt",
            "`scaled` lowers the least budget of 512 tokens below 32,768 tokens, in proportion; `paper` always 512",
            "the block that crosses the share is kept in the pooled map too, where the released code leaves it out",
            "the index is charged at coverage 1 too, where everything is read without estimating anything",
            "with learned sinks shares are of the attention that keys receive",
        ),
    )

    block: int = Field(32, ge=1)
    """Queries and keys of a block."""
    tau: float = Field(0.1, ge=0)
    """Largest distance at which a head trusts the pooled map."""
    least: int = Field(512, ge=1)
    """Tokens of columns, and of diagonals, that a head reads at least."""
    setting: Setting = "scaled"

    def is_short(self, length: int) -> bool:
        """Whether a prompt is so short that it is attended densely."""
        return length <= max(2 * self.block, self.block * self.least_blocks(length))

    def least_blocks(self, length: int) -> int:
        """Blocks of columns, and of diagonals, that a head reads at least."""
        return ceil(scaled(self.least, length, self.setting) / self.block)

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Scores of the last block of queries, pooling the keys, and one product of means for each block of keys."""
        length = start + count
        if self.is_short(length):
            return 0.0, 0.0
        queries = min(self.block, count)
        keys = length if window is None else min(length, window + queries)
        pooled = shape.kv_heads * length * shape.head_dim + 2.0 * shape.heads * shape.head_dim * -(
            -length // self.block
        )
        read = length * shape.kv_heads * shape.key_bytes / 2
        return 2.0 * shape.heads * shape.head_dim * queries * keys + pooled, read

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_start

        return by_start(view, lambda rows: self._select_rows(rows, allowance.coverage or 1.0))

    def _select_rows(self, rows: AttentionView, coverage: float) -> Selection:
        import numpy as np
        import torch

        from sparsebench.adapters.attention._blocks import Grid
        from sparsebench.adapters.attention._selection import ASKED, Blocks
        from sparsebench.engine.transfer import sent

        grid = Grid.of(rows, self.block)
        visible = (grid.pairs > 0)[:, None]
        short = np.array([coverage >= 1 or self.is_short(length) for length in grid.lengths.tolist()])
        if short.all():
            return Blocks(visible, self.block, grid.first_block)
        chosen, aware = self._vertical_slash(rows, coverage, grid)
        if short.any():
            whole = sent(short, aware.device)[:, None]
            chosen, aware = chosen | whole[..., None, None], aware & ~whole
        if aware.device.type in ASKED and not bool(aware.any()):
            return Blocks(chosen & visible, self.block, grid.first_block)
        mapped = pooled_map(rows, self.block, visible)
        chosen = torch.where(aware[..., None, None], chosen | covering(mapped, coverage, visible), chosen)
        work = rows.query.shape[3] * (grid.lengths - grid.start + 2.0 * grid.seen)
        flops = (aware.sum(dim=1) * sent(work, aware.device)).sum()
        return Blocks(chosen & visible, self.block, grid.first_block, flops)

    def _vertical_slash(self, rows: AttentionView, coverage: float, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and diagonals of blocks [rows, heads, query_blocks, key_blocks], and heads that take the map."""
        import numpy as np
        import torch

        from sparsebench.adapters.attention._blocks import pooled_keys
        from sparsebench.adapters.attention._estimate import attention_weights, block_sums, last_queries
        from sparsebench.adapters.attention.vertical_slash import ranks, sums_by_column_and_diagonal
        from sparsebench.engine.transfer import sent

        size, device = self.block, rows.query.device
        last = last_queries(rows, size)
        real = (last.positions >= 0).float()
        queries = real.sum(dim=1)[:, None, None]
        vertical, slash = sums_by_column_and_diagonal(attention_weights(last), last.positions)
        vertical, slash = vertical / queries, slash / queries
        if rows.sinks is not None:  # learned sinks take a part of the attention: shares are of what keys receive
            vertical, slash = (x / x.sum(dim=-1, keepdim=True).clamp(min=1e-30) for x in (vertical, slash))
        columns, diagonals = block_sums(vertical, size, 2), block_sums(slash, size, 2)
        mean = (last.query.float() * real[:, None, :, None]).sum(dim=2, keepdim=True) / queries[..., None]
        logits = rows.scaling * (mean @ pooled_keys(rows, size).transpose(-1, -2))[:, :, 0]
        end = sent((grid.lengths - 1) // size - grid.first_block, device)  # the block of the last query
        seen = (grid.pairs > 0)[torch.arange(len(end), device=device), end][:, None]
        estimate = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1)
        aware = js_distance(estimate, columns) < self.tau
        least = sent(np.array([self.least_blocks(length) for length in grid.lengths.tolist()]), device)[:, None]
        wide = torch.where(aware, least, torch.maximum(covering_count(vertical, coverage) // size + 1, least))
        deep = torch.where(aware, least, torch.maximum(covering_count(slash, coverage) // size + 1, least))
        held = sent(-(-grid.lengths // size), device)[:, None, None]
        taken, along = ranks(columns, 1, held) < wide[..., None], ranks(diagonals, 1, held) < deep[..., None]
        own = torch.arange(grid.pairs.shape[1], device=device)[:, None] + grid.first_block
        distance = (own - torch.arange(grid.pairs.shape[2], device=device)).clamp(min=0)
        return taken[:, :, None] | along[:, :, distance], aware


def pooled_map(rows: AttentionView, size: int, visible: torch.Tensor) -> torch.Tensor:
    """Attention between the means of blocks, softmaxed over the blocks of keys.

    [rows, heads, query_blocks, key_blocks]; rows begin together.
    """
    import torch

    from sparsebench.adapters.attention._blocks import pooled_scores

    return torch.softmax(pooled_scores(rows, size).masked_fill(~visible, -torch.inf), dim=-1).nan_to_num()


def covering(mapped: torch.Tensor, coverage: float, visible: torch.Tensor) -> torch.Tensor:
    """The fewest blocks of a whole map that hold a share of it, bool [rows, heads, query_blocks, key_blocks]."""
    from sparsebench.adapters.attention._selection import cover_mask

    return cover_mask(mapped.flatten(2), coverage).reshape(mapped.shape) & visible


def covering_count(mass: torch.Tensor, coverage: float) -> torch.Tensor:
    """How many of the largest entries, which sum to 1, it takes to exceed a share; int64 [rows, heads]."""
    ranked = mass.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (ranked <= coverage).sum(dim=-1) + 1


def js_distance(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Square root of the Jensen-Shannon divergence (in nats) along the last dimension."""
    import torch

    middle = (p + q) / 2
    divergence = (torch.xlogy(p, p) - torch.xlogy(p, middle) + torch.xlogy(q, q) - torch.xlogy(q, middle)).sum(
        dim=-1
    ) / 2
    return divergence.clamp(min=0).sqrt()
