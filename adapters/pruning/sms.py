"""SMS: averages of models that were pruned alike and trained apart."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class SMS(Unavailable):
    """Sparse model soups: iterative magnitude pruning in which each phase averages several trained copies."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sms",
        family="pruning",
        title="Sparse Model Soups",
        summary="After each round of magnitude pruning several copies are retrained from one mask and their weights "
        "averaged.",
        paper=Paper(
            title="Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging",
            authors="Max Zimmer and Christoph Spiegel and Sebastian Pokutta",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2306.16788",
            key="zimmer2024sparse",
        ),
        role="method",
        unit="weight",
        adaptivity="static",
        training="training",
        needs=("retraining of several copies after each round of pruning",),
        nearest="magnitude",
        differs="averages retrained copies that share a mask",
    )
