"""GRIFFIN: the neurons that a prompt uses serve its continuation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.activation._prompt import PromptActivation
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch


class Griffin(PromptActivation):
    """Each prompt token's neurons, divided by their norm, are squared and summed over the prompt (section 4.2)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="griffin",
        family="activation",
        title="GRIFFIN",
        summary="Of the neurons of an MLP those that are smallest over the prompt, each token taken relative to its "
        "norm, are left out in decode.",
        paper=Paper(
            title="Prompt-prompted Adaptive Structured Pruning for Efficient LLM Generation",
            authors="Harry Dong and Beidi Chen and Yuejie Chi",
            year=2024,
            venue="Conference on Language Modeling",
            url="https://arxiv.org/abs/2404.01365",
            key="dong2024griffin",
        ),
        unit="neuron",
        phases=("decode",),
        modes=("simulated", "executed"),
        nearest="coreinfer",
        differs="sums squares of relative sizes over the prompt, where CoreInfer counts how often a neuron is large",
        deviations=("the prompt is what runs in prefill: with a context, the question after it is decoded",),
    )

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `PromptActivation`."""
        squares = x.float().square()
        return squares / squares.sum(dim=1, keepdim=True).clamp(min=1e-30)
