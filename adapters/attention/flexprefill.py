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
        from sparsebench.adapters.attention._selection import by_row

        return by_row(view, lambda row: self._select_row(row, allowance.coverage or 1.0))

    def _select_row(self, row: AttentionView, coverage: float) -> Selection:
        import torch

        from sparsebench.adapters.attention._blocks import block_pairs
        from sparsebench.adapters.attention._selection import ASKED, Blocks
        from sparsebench.engine.transfer import sent

        size, length = self.block, row.key.shape[2]
        start = int(row.geometry.positions[0, 0])
        seen = block_pairs(start, length - start, row.window, size) > 0
        visible = sent(seen.numpy(), row.query.device)
        if self.is_short(length) or coverage >= 1:
            return Blocks(torch.ones_like(visible)[None], size, start // size)
        chosen, aware = self._vertical_slash(row, coverage, visible, start)
        if aware.device.type in ASKED and not bool(aware.any()):
            return Blocks(chosen & visible, size, start // size)
        mapped = pooled_map(row, size, visible)
        chosen = torch.where(aware[:, None, None], chosen | covering(mapped, coverage, visible), chosen)
        flops = aware.sum() * (row.query.shape[3] * (length - start + 2.0 * int(seen.sum())))
        return Blocks(chosen & visible, size, start // size, flops)

    def _vertical_slash(
        self, row: AttentionView, coverage: float, visible: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and diagonals of blocks [heads, query_blocks, key_blocks], and heads that take the pooled map."""
        import torch

        from sparsebench.adapters.attention._estimate import attention_weights, block_means, block_sums, last_queries
        from sparsebench.adapters.attention.vertical_slash import ranks, sums_by_column_and_diagonal

        size, length = self.block, row.key.shape[2]
        last = last_queries(row, size)
        vertical, slash = sums_by_column_and_diagonal(attention_weights(last)[0], last.positions[0])
        vertical, slash = vertical / last.query.shape[2], slash / last.query.shape[2]
        if row.sinks is not None:  # learned sinks take a part of the attention: shares are of what keys receive
            vertical, slash = (x / x.sum(dim=-1, keepdim=True).clamp(min=1e-30) for x in (vertical, slash))
        columns, diagonals = block_sums(vertical, size, 1), block_sums(slash, size, 1)
        keys = block_means(row.key[0], size, 1).repeat_interleave(row.group, dim=0)
        logits = row.scaling * (last.query[0].float().mean(dim=1, keepdim=True) @ keys.transpose(-1, -2))[:, 0]
        estimate = torch.softmax(logits.masked_fill(~visible[-1], -torch.inf), dim=-1)
        aware = js_distance(estimate, columns) < self.tau
        least = self.least_blocks(length)
        wide = torch.where(aware, least, (covering_count(vertical, coverage) // size + 1).clamp(min=least))
        deep = torch.where(aware, least, (covering_count(slash, coverage) // size + 1).clamp(min=least))
        taken, along = ranks(columns, 1) < wide[:, None], ranks(diagonals, 1) < deep[:, None]
        own = torch.arange(visible.shape[0], device=visible.device)[:, None] + start // size
        distance = (own - torch.arange(visible.shape[1], device=visible.device)).clamp(min=0)
        return taken[:, None] | along[:, distance], aware


def pooled_map(row: AttentionView, size: int, visible: torch.Tensor) -> torch.Tensor:
    """Attention between the means of blocks, softmaxed over the blocks of keys, [heads, query_blocks, key_blocks]."""
    import torch

    from sparsebench.adapters.attention._blocks import pooled_scores

    return torch.softmax(pooled_scores(row, size).masked_fill(~visible, -torch.inf), dim=-1)


def covering(mapped: torch.Tensor, coverage: float, visible: torch.Tensor) -> torch.Tensor:
    """The fewest blocks of a whole map that hold a share of it, bool [heads, query_blocks, key_blocks]."""
    from sparsebench.adapters.attention._selection import cover_mask

    return cover_mask(mapped.flatten(1), coverage).reshape(mapped.shape) & visible


def covering_count(mass: torch.Tensor, coverage: float) -> torch.Tensor:
    """How many of the largest entries, which sum to 1, it takes to exceed a share; int64 [heads]."""
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
