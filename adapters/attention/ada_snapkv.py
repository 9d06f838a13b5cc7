"""Ada-SnapKV: SnapKV with one budget for all heads of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.snapkv import SnapKV
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class AdaSnapKV(SnapKV):
    """SnapKV's scores compared over all heads of a layer, so that heads with scattered attention keep more."""

    card: ClassVar[MethodCard] = MethodCard(
        id="ada-snapkv",
        family="attention",
        title="Ada-SnapKV",
        summary="SnapKV's scores compete over all key heads of a layer; each head is sure of a fifth of an even share.",
        paper=Paper(
            title="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
            authors="Yuan Feng and Junlin Lv and Yukun Cao and Xike Xie and S. Kevin Zhou",
            year=2025,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2407.11550",
            key="feng2025adakv",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="snapkv",
        differs="gives the heads of a layer unequal budgets",
        deviations=(
            "scores are SnapKV's, averaged over the heads of a group and over neighbours",
            "bytes resident count each head's own keys; a cache whose heads are of one length would save nothing",
            "`scaled` leaves the last keys no more than half of a budget; `paper` always keeps all of them",
        ),
    )

    safe: float = Field(0.2, ge=0, le=1)
    """Share of an even budget that each head has for sure."""

    def keep(self, prompt: AttentionView, count: int, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.keep`."""
        from sparsebench.adapters.attention._eviction import best, within_reach
        from sparsebench.adapters.attention.snapkv import last_first

        score, reach = self.checked_score(prompt, prepared), within_reach(prompt)
        ranked = last_first(score, self.last(count))
        sure = best(ranked, reach, max(int(self.safe * count), self.last(count)))
        rest = score.masked_fill(sure, float("inf")).flatten()
        return best(rest, reach.expand_as(score).flatten(), count * len(score)).reshape(score.shape)
