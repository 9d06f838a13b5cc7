"""Random eviction: the control at equal budget for methods that evict keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.card import MethodCard

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class RandomEviction(CacheAdapter):
    """Keys of the prompt drawn at random for each layer and key head."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-eviction",
        family="attention",
        title="Random eviction",
        summary="At the end of prefill keys drawn at random stay, each layer and key head by itself.",
        role="control",
        unit="token",
        phases=("decode",),
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="random-tokens",
        differs="draws once for a prompt, not for each query",
    )

    seed: int = 0

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        import torch

        from sparsebench.adapters.attention._estimate import uniform

        keys = torch.arange(prompt.key.shape[2], device=prompt.key.device)
        heads = torch.arange(prompt.key.shape[1], device=prompt.key.device)[:, None]
        return uniform(self.seed, prompt.layer, heads, keys)
