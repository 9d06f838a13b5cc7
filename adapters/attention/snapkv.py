"""SnapKV: keys that the last queries of a prompt attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.attention.base import Setting
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape
from sparsebench.errors import FieldError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView

PAPER = Paper(
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    authors="Yuhong Li and Yingbing Huang and Bowen Yang and Bharat Venkitesh and Acyr Locatelli and others",
    year=2024,
    venue="Advances in Neural Information Processing Systems",
    url="https://arxiv.org/abs/2404.14469",
    key="li2024snapkv",
)


class SnapKV(CacheAdapter):
    """The keys with the most attention from a window of last queries, smoothed along the prompt, and that window."""

    card: ClassVar[MethodCard] = MethodCard(
        id="snapkv",
        family="attention",
        title="SnapKV",
        summary="At the end of prefill the keys stay that the last queries of the prompt attend to most, smoothed over "
        "neighbours, and those last keys; all others are evicted.",
        paper=PAPER,
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="tova",
        differs="looks at a window of last queries, smooths, chooses for each key head and evicts once",
        deviations=(
            "the heads of a group share what they keep, by their mean; the released code has no grouped heads",
            "neighbours are averaged over 5 keys; the paper takes their maximum",
            "`scaled` leaves the last keys no more than half of a budget; `paper` always keeps all of them",
        ),
    )

    queries: int = Field(64, ge=1)
    """Last queries whose attention is looked at, and last keys that stay."""
    kernel: int = Field(5, ge=1)
    """Neighbouring keys whose scores are averaged; odd."""
    setting: Setting = "scaled"

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise FieldError("an even number of neighbours has no key in its middle; take an odd one")
        return kernel

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """Scores of the last queries over all keys."""
        queries = min(self.queries, length)
        keys = length if window is None else min(length, window + queries)
        return 2.0 * shape.heads * shape.head_dim * queries * keys, keys * shape.kv_heads * shape.key_bytes / 2

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`; the last keys are worth more than any other, the later the more."""
        return observed(prompt, self.queries, self.kernel)

    def keep(self, prompt: AttentionView, count: int, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.keep`."""
        from sparsebench.adapters.attention._eviction import best, within_reach

        score = last_first(self.checked_score(prompt, prepared), self.last(count))
        return best(score, within_reach(prompt), count)

    def last(self, count: int) -> int:
        """Last keys that stay whatever their score."""
        return min(self.queries, count) if self.setting == "paper" else min(self.queries, -(-count // 2))


def observed(prompt: AttentionView, queries: int, kernel: int) -> torch.Tensor:
    """Attention from the last queries, averaged over them, over neighbouring keys and over the heads of a group.

    Returns:
        float32 [kv_heads, keys]. The last keys have their own mean too; neighbours beyond them count as zero.
    """
    import torch

    from sparsebench.adapters.attention._estimate import attention_weights, grouped, last_queries

    weights = attention_weights(last_queries(prompt, queries))[0].mean(dim=1)
    before = weights[:, : max(0, weights.shape[1] - queries)]
    smooth = weights.clone()
    if before.shape[1]:
        smooth[:, : before.shape[1]] = torch.nn.functional.avg_pool1d(before, kernel, 1, kernel // 2)[
            :, : before.shape[1]
        ]
    return grouped(smooth, prompt.group).mean(dim=1)


def last_first(score: torch.Tensor, count: int) -> torch.Tensor:
    """The same scores, but that the last `count` keys come before all others, the latest first."""
    import torch

    keys = score.shape[-1]
    place = torch.arange(keys, device=score.device)
    above = score.amax(dim=-1, keepdim=True) + 1 + (place - keys + count)
    return torch.where(place >= keys - count, above, score)
