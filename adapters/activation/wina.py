"""WINA: activations times the norm of the weights that they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.activation.base import AllocatedActivation, Rule, Scope, Site
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

RELEASED = ("k_proj", "qkv_proj", "gate_proj", "gate_up_proj")
"""Layers whose norms the released code reads; for all others it takes 1."""


class Wina(AllocatedActivation):
    """|x_j| times the 2-norm of column j of the weight is what a channel is worth (section 3.1)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="wina",
        family="activation",
        title="WINA",
        summary="Of the inputs of each linear layer those with the smallest |x| ||W|| become zero, equally many of a "
        "token.",
        paper=Paper(
            title="WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
            authors="Sihan Chen and Dan Zhao and Jongwoo Ko and Colby Banbury and Huiping Zhuang and Luming Liang and "
            "Tianyi Chen",
            year=2025,
            venue="arXiv:2505.19427",
            url="https://arxiv.org/abs/2505.19427",
            key="chen2025wina",
        ),
        unit="channel",
        nearest="teal",
        differs="weighs each channel by the norm of its column, so that layers with one input keep different channels",
        deviations=(
            "without the transform that makes the columns of a weight orthogonal",
            "unless allocation is greedy, all layers have the same target; the paper searches as TEAL does",
        ),
    )

    rule: Rule = "topk"
    scope: Scope = "last-99"
    norms: Literal["all", "released"] = "all"
    """Layers whose norms are read: all, as the paper says, or those of keys and gates, as in the released code."""

    def state_of(self, site: Site) -> torch.Tensor | None:
        """Norms of the columns, float32 [channels]."""
        if site.weight is None or (self.norms == "released" and site.name.rsplit(".", 1)[-1] not in RELEASED):
            return None
        norms: torch.Tensor = site.weight.float().norm(dim=0)
        return norms

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.float().abs() if state is None else (x.float() * state).abs_()
