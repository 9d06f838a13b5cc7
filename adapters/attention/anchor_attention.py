"""AnchorAttention: columns whose score comes near to the best of the sink and the local window."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class AnchorAttention(AttentionAdapter):
    """Stripes: single columns that a group of blocks of queries shares, by their distance to an anchor."""

    card: ClassVar[MethodCard] = MethodCard(
        id="anchor-attention",
        family="attention",
        title="AnchorAttention",
        summary="A key is read by a group of queries where a pooled query's score for it is within theta of the "
        "highest score among first and local keys.",
        paper=Paper(
            title="AnchorAttention: Difference-Aware Sparse Attention with Stripe Granularity",
            authors="Yu Zhang and Dong Guo and Fang Wu and Guoliang Zhu and Dian Ding and Yiming Zhang",
            year=2025,
            venue="arXiv:2505.23520",
            url="https://arxiv.org/abs/2505.23520",
            key="zhang2025anchorattention",
        ),
        unit="token",
        phases=("prefill",),
        adaptivity="threshold",
        budgets=(),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="vertical-slash",
        differs="single columns by a threshold on scores, for each group of queries, and no diagonals",
        deviations=(
            "blocks of 16 in groups of 4, not of 128 in groups of 16: 2,048 queries are most of a short prompt",
            "theta is in nats, as in the paper's formula; the released kernel compares logits to the base of 2",
        ),
    )

    theta: float = 12.0
    """How far below the anchor a score may be, in nats."""
    block: int = Field(16, ge=1)
    """Queries that are pooled, and first keys that everyone reads."""
    step: int = Field(4, ge=1)
    """Blocks of queries in a group; the local window begins with the group."""

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Products of pooled queries with the keys between the first block, or the window's end, and each group."""
        flops = 0.0
        for block in range(start // self.block, (start + count - 1) // self.block + 1):
            before = block // self.step * self.step * self.block
            oldest = 0 if window is None else max(start, block * self.block) + 1 - window
            flops += 2.0 * shape.heads * shape.head_dim * max(0, before - max(self.block, oldest))
        pooling = shape.heads * shape.head_dim * count
        return flops + pooling, (start + count) * shape.kv_heads * shape.key_bytes / 2

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_row

        return by_row(view, self._select_row)

    def _select_row(self, row: AttentionView) -> Selection:
        import torch

        from sparsebench.adapters.attention._rows import part_of
        from sparsebench.adapters.attention._selection import Stripes

        start, length = int(row.geometry.positions[0, 0]), row.key.shape[2]
        group = self.block * self.step
        first = start // group
        keys = torch.arange(length, device=row.query.device)
        chosen = []
        for place in range(first, (length - 1) // group + 1):
            low, high = max(start, place * group) - start, min(length, (place + 1) * group) - start
            part = part_of(row, low, high)
            stripes = self._stripes(part, place * group)
            local = (keys >= place * group) | (keys < self.block)
            chosen.append(torch.nn.functional.pad(stripes, (0, length - stripes.shape[1])) | local)
        return Stripes(torch.stack(chosen, dim=1), group, first)

    def _stripes(self, part: AttentionView, begin: int) -> torch.Tensor:
        """Columns that one group of queries reads, bool [heads, keys]."""
        import torch

        from sparsebench.adapters.attention._estimate import block_means
        from sparsebench.engine.attention import scores

        keys = torch.arange(part.key.shape[2], device=part.query.device)
        near = part.visible()[0, 0] & ((keys < self.block) | (keys >= begin))
        anchors = scores(part)[0].masked_fill(~near, -torch.inf).amax(dim=-1)
        offset = int(part.geometry.positions[0, 0]) % self.block
        anchors = block_means(anchors, self.block, 1, offset)
        queries = block_means(part.query[0], self.block, 1, offset)
        pooled = part.scaling * queries @ part.key[0].float().repeat_interleave(part.group, dim=0).transpose(-1, -2)
        if part.softcap is not None:
            pooled = part.softcap * torch.tanh(pooled / part.softcap)
        return (pooled >= anchors[..., None] - self.theta).any(dim=1)
