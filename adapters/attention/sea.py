"""SEA: a mask from a trained estimate of the attention matrix."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class SEA(Unavailable):
    """A mask from a trained estimate of the attention matrix."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sea",
        family="attention",
        title="SEA",
        summary="A linear-attention branch estimates the attention matrix, whose largest entries become the mask.",
        paper=Paper(
            title="SEA: Sparse Linear Attention with Estimated Attention Mask",
            authors="Heejun Lee and Jina Kim and Jeffrey Willette and Sung Ju Hwang",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2310.01777",
            key="lee2024sea",
        ),
        unit="token",
        phases=("prefill",),
        budgets=("sparsity", "tokens"),
        training="training",
        needs=("the estimator of each layer, trained by distillation from this model",),
        nearest="oracle-tokens",
        differs="estimates the attention matrix by a trained branch instead of knowing it",
    )
