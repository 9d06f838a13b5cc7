"""KeyDiff: keys unlike the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class KeyDiff(CacheAdapter):
    """The keys stay whose direction differs most from the mean direction."""

    card: ClassVar[MethodCard] = MethodCard(
        id="keydiff",
        family="attention",
        title="KeyDiff",
        summary="At the end of prefill the keys stay that have the smallest cosine to the mean of all normalised keys.",
        paper=Paper(
            title="KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in "
            "Resource-Constrained Environments",
            authors="Junyoung Park and Dalton Jones and Matthew J. Morse and Raghavv Goel and Mingu Lee and Chris Lott",
            year=2025,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2504.15364",
            key="park2025keydiff",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="knorm",
        differs="looks at each key's direction, not at its length",
        deviations=("evicts once, at the end of prefill; the paper does so after each block of a prompt",),
    )

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """Norm, sum and product with the mean for each key."""
        entries = float(length * shape.kv_heads * shape.head_dim)
        return 5 * entries, 2 * entries * shape.bytes_per_entry

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        from torch.nn.functional import cosine_similarity, normalize

        keys = prompt.key[0].float()
        return -cosine_similarity(keys, normalize(keys, dim=-1).mean(dim=1, keepdim=True), dim=-1)
