"""GMP: magnitude pruning, a little at a time, while the model is trained."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class GMP(Unavailable):
    """Magnitude pruning on a cubic schedule during training."""

    card: ClassVar[MethodCard] = MethodCard(
        id="gmp",
        family="pruning",
        title="GMP",
        summary="Weights with the smallest absolute value go a few at a time during training, on a cubic schedule.",
        paper=Paper(
            title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
            authors="Michael Zhu and Suyog Gupta",
            year=2017,
            venue="arXiv:1710.01878",
            url="https://arxiv.org/abs/1710.01878",
            key="zhu2017prune",
        ),
        role="method",
        unit="weight",
        adaptivity="static",
        training="training",
        needs=("training of the model for the length of the schedule",),
        nearest="magnitude",
        differs="the model is trained while weights go",
    )
