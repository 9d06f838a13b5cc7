"""H2O: keys that have received the most attention so far, and recent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention._cache import StepwiseCache
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape, window_pairs

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class H2O(StepwiseCache):
    """Heavy hitters by accumulated attention, updated and evicted at each decoded token."""

    card: ClassVar[MethodCard] = MethodCard(
        id="h2o",
        family="attention",
        title="H2O",
        summary="Keys are worth the attention that they have had from all queries so far; at each decoded token the "
        "least of them goes, recent keys aside.",
        paper=Paper(
            title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
            authors="Zhenyu Zhang and Ying Sheng and Tianyi Zhou and Tianlong Chen and Lianmin Zheng and others",
            year=2023,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2306.14048",
            key="zhang2023h2o",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="tova",
        differs="adds up the attention of all queries instead of looking at the last one's, and spares recent keys",
        deviations=(
            "prefill is dense and its attention is what scores begin with; the paper evicts during it",
            "the heads of a group share what they keep, by the sum of their attention",
            "a ratio is a share of what a query sees, so that the cache grows with the text; tokens are a fixed cache",
        ),
    )

    share: float = Field(0.5, ge=0, le=1)
    """Share of the budget that recent keys have."""

    def recent(self, count: int) -> int:
        """See `StepwiseCache.recent`."""
        return int(self.share * count)

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """All scores of prefill once more: kernels that do not hold them give no sums of columns."""
        pairs = float(window_pairs(0, length, window))
        return 2 * shape.heads * shape.head_dim * pairs, length * shape.kv_heads * shape.key_bytes / 2

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        import torch

        from sparsebench.adapters.attention._estimate import attention_weights, grouped
        from sparsebench.adapters.attention._rows import SLICE, part_of

        sums = torch.zeros((prompt.query.shape[1], prompt.key.shape[2]), device=prompt.key.device)
        for first in range(0, prompt.query.shape[2], SLICE):
            part = part_of(prompt, first, min(first + SLICE, prompt.query.shape[2]))
            sums[:, : part.key.shape[2]] += attention_weights(part)[0].sum(dim=1)
        return grouped(sums, prompt.group).sum(dim=1)

    def update(self, worth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `StepwiseCache.update`."""
        return worth + weights.sum(dim=2)
