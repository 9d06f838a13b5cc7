"""Wanda: weights times the norm of what they are fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.base import CalibratedPruning, Layer

if TYPE_CHECKING:
    import torch


class Wanda(CalibratedPruning):
    """|W_ij| times the 2-norm of input j over the calibration tokens is what a weight is worth (equation 1)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="wanda",
        family="pruning",
        title="Wanda",
        summary="In each output row the weights with the smallest |W| ||X|| go; kept weights do not change.",
        paper=Paper(
            title="A Simple and Effective Pruning Approach for Large Language Models",
            authors="Mingjie Sun and Zhuang Liu and Anna Bair and J. Zico Kolter",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2306.11695",
            key="sun2024wanda",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="magnitude",
        differs="weighs each input channel by its norm, and compares within rows",
        deviations=(
            "the paper reads 128 sequences of the model's whole context from C4; here the suite says what is read",
        ),
    )

    def score(self, layer: Layer) -> torch.Tensor:
        """See `PruningAdapter.score`."""
        return layer.weight.abs() * layer.inputs.norm
