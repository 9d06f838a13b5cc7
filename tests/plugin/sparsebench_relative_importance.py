"""Relative importance: small weights go, by their share of their row and of their column."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters import MethodCard, Paper
from sparsebench.adapters.pruning.base import Layer, PruningAdapter

if TYPE_CHECKING:
    import torch


class RelativeImportance(PruningAdapter):
    """|W_ij| over the sum of its row, plus |W_ij| over the sum of its column, is what a weight is worth."""

    card: ClassVar[MethodCard] = MethodCard(
        id="relative-importance",
        family="pruning",
        title="Relative importance",
        summary="Weights that are a small share of their row and of their column go; no text is read.",
        paper=Paper(
            title="Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
            authors="Yingtao Zhang and Haoli Bai and Haokun Lin and Jialin Zhao and Lu Hou and Carlo V. Cannistraci",
            year=2024,
            url="https://openreview.net/forum?id=Tr0lPx9woF",
            key="zhang2024plug",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        nearest="magnitude",
        differs="divides by the sums of row and column, so that no channel loses all of its weights",
        deviations=("leaves out the norms of the activations, which the paper multiplies with",),
    )

    def score(self, layer: Layer) -> torch.Tensor:
        """Importance, float32 [out, in]; in each group the lowest go."""
        size = layer.weight.abs()
        return size / size.sum(dim=1, keepdim=True).clamp_min(1e-12) + size / size.sum(dim=0).clamp_min(1e-12)
