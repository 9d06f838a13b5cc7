"""TOVA: keys by the attention of the last query alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention._cache import StepwiseCache
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class TOVA(StepwiseCache):
    """At each token the key goes that the last query attended to least, over all heads of a layer."""

    card: ClassVar[MethodCard] = MethodCard(
        id="tova",
        family="attention",
        title="TOVA",
        summary="Keys are worth the attention of the last query, averaged over the heads of a layer; at each decoded "
        "token the least of them goes.",
        paper=Paper(
            title="Transformers are Multi-State RNNs",
            authors="Matanel Oren and Michael Hassid and Nir Yarden and Yossi Adi and Roy Schwartz",
            year=2024,
            venue="Conference on Empirical Methods in Natural Language Processing",
            url="https://arxiv.org/abs/2401.06104",
            key="oren2024tova",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="h2o",
        differs="looks at the last query only and at all heads of a layer together, and spares no key",
        deviations=(
            "prefill is dense, and its last query decides what the first decoded one finds; the paper evicts during it",
            "a ratio is a share of what a query sees, so that the cache grows with the text; tokens are a fixed cache",
        ),
    )

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """Scores of the last query."""
        keys = length if window is None else min(length, window)
        return 2.0 * shape.heads * shape.head_dim * keys, keys * shape.kv_heads * shape.key_bytes / 2

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        from sparsebench.adapters.attention._estimate import attention_weights, last_queries

        mean = attention_weights(last_queries(prompt, 1))[0, :, 0].mean(dim=0)
        return mean.expand(prompt.key.shape[1], -1)

    def update(self, worth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `StepwiseCache.update`."""
        return weights.mean(dim=(1, 2))[:, None].expand_as(worth)
