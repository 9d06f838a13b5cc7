"""Block top-k: blocks of keys by mean-pooled queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class BlockTopK(AttentionAdapter):
    """The blocks of keys whose mean is nearest to the mean of a block of queries."""

    card: ClassVar[MethodCard] = MethodCard(
        id="block-topk",
        family="attention",
        title="Block top-k (MInference block-sparse)",
        summary="In prefill a block of queries reads its own block and those with the highest product of means.",
        paper=Paper(
            title="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
            authors="Huiqiang Jiang and Yucheng Li and Chengruidong Zhang and Qianhui Wu and Xufang Luo and others",
            year=2024,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2407.02490",
            key="jiang2024minference",
        ),
        unit="block",
        phases=("prefill",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="oracle-blocks",
        differs="estimates the attention between two blocks from their means",
        deviations=(
            "the pattern of all heads; in MInference it is one of three that a search gives to heads",
            "blocks of 32, not 64: with 64, sink and diagonal alone fill most of a short prompt",
            "the diagonal block is always read",
        ),
    )

    block: int = Field(32, ge=1)
    """Queries and keys of a block."""

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Adding up the blocks, and one product for each pair of blocks."""
        from sparsebench.adapters.attention._blocks import block_pairs

        blocks = int((block_pairs(start, count, window, self.block) > 0).sum())
        pooling = shape.head_dim * (shape.heads * count + shape.kv_heads * (start + count))
        read = (start + count) * shape.kv_heads * shape.key_bytes / 2
        return pooling + 2.0 * shape.heads * shape.head_dim * blocks, read

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_start

        return by_start(view, lambda rows: self._select_rows(rows, allowance))

    def _select_rows(self, rows: AttentionView, allowance: Allowance) -> Selection:
        from sparsebench.adapters.attention._blocks import Grid, choose_blocks, pooled_scores
        from sparsebench.adapters.attention._selection import Blocks

        grid = Grid.of(rows, self.block)
        chosen = choose_blocks(pooled_scores(rows, self.block), grid, grid.own, allowance)
        return Blocks(chosen, self.block, grid.first_block)
