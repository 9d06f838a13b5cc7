"""Knorm: keys of small norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.attention.base import first_layers
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class Knorm(CacheAdapter):
    """The keys with the smallest norm stay: they are those that queries attend to."""

    card: ClassVar[MethodCard] = MethodCard(
        id="knorm",
        family="attention",
        title="Knorm",
        summary="At the end of prefill the keys with the smallest L2 norm stay; no attention is looked at.",
        paper=Paper(
            title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
            authors="Alessio Devoto and Yu Zhao and Simone Scardapane and Pasquale Minervini",
            year=2024,
            venue="Conference on Empirical Methods in Natural Language Processing",
            url="https://arxiv.org/abs/2406.11430",
            key="devoto2024knorm",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="keydiff",
        differs="looks at each key's length, not at its direction",
        deviations=("no layer is left whole; the paper spares the first two (knob `dense`)",),
    )

    dense: int = Field(0, ge=0)
    """First layers from which nothing is evicted."""

    def dense_layers(self, layers: int) -> frozenset[int]:
        """See `AttentionAdapter.dense_layers`."""
        return first_layers(self.dense, layers)

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """A square for each entry of each key."""
        entries = float(length * shape.kv_heads * shape.head_dim)
        return 2 * entries, entries * shape.bytes_per_entry

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        norms: torch.Tensor = prompt.key[0].float().norm(dim=-1)
        return -norms
