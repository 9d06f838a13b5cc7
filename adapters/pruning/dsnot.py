"""DSnoT: trade pruned weights for kept ones so that rows keep their expected output."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.base import Allotment, CalibratedPruning, Layer

if TYPE_CHECKING:
    import torch

SEQUENCE = 2048
"""Tokens of a sequence in the released code, which sums a row's bias over a sequence: its threshold is per so many."""


class DSnoT(CalibratedPruning):
    """A mask of another score, refined without training; kept weights do not change."""

    card: ClassVar[MethodCard] = MethodCard(
        id="dsnot",
        family="pruning",
        title="DSnoT",
        summary="From another method's mask, each row brings back pruned weights and lets others go until the expected "
        "change of its output vanishes.",
        paper=Paper(
            title="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
            authors="Yuxin Zhang and Lirui Zhao and Mingbao Lin and Yunyun Sun and Yiwu Yao and Xingjia Han and "
            "Jared Tanner and Shiwei Liu and Rongrong Ji",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2310.08915",
            key="zhang2024dynamic",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="wanda",
        differs="weighs the sign of each weight's expected contribution, and repairs the bias of whole rows",
        deviations=(
            "a row stops when no weight of the right sign is left, where the released code would change its sparsity",
            "the variance of an input is taken over all calibration tokens, not averaged over sequences",
        ),
    )

    compare_group: Literal["row"] = "row"
    initial: Literal["wanda", "magnitude", "sparsegpt"] = "wanda"
    """Whose score makes the first mask; of SparseGPT the score alone, without its update."""
    refine: Literal["attention", "all"] = "attention"
    """Layers that are refined; the released code leaves MLPs with the first mask unless it is told otherwise."""
    cycles: int = Field(50, ge=0)
    """Most swaps of a row."""
    threshold: float = Field(0.1, ge=0)
    """A row is done when its bias, summed over 2,048 tokens, is no larger."""
    power: float = Field(1.0, ge=0)
    """Power of an input's variance by which growing is divided."""
    stop_at_sign_change: bool = False
    """Whether a row is done before its bias changes sign; always so in a pattern, as in the released code."""

    def reads_gram(self) -> bool:
        """See `CalibratedPruning.reads_gram`."""
        return self.initial == "sparsegpt"

    def score(self, layer: Layer) -> torch.Tensor:
        """The score of the first mask."""
        if self.initial == "magnitude":
            return layer.weight.abs()
        if self.initial == "sparsegpt":
            from sparsebench.adapters.pruning import _obs
            from sparsebench.adapters.pruning.sparsegpt import gram_of

            return _obs.saliency(layer.weight, _obs.inverse_factor(gram_of(layer)))
        return layer.weight.abs() * layer.inputs.norm

    def mask(self, layer: Layer, allotment: Allotment) -> torch.Tensor:
        """See `PruningAdapter.mask`."""
        from sparsebench.adapters.pruning import _groups, _swaps

        score = self.checked_score(layer)
        first = _groups.mask(score, allotment)
        if self.refine == "attention" and not ("attn" in layer.name or "attention" in layer.name):
            return first
        inputs = layer.inputs
        shares = layer.weight * inputs.mean * SEQUENCE
        spread = inputs.variance.pow(self.power)
        trade = _swaps.Trade(
            shares=shares,
            growth=(shares / spread).nan_to_num(0, 0, 0),
            worth=score if allotment.pattern else layer.weight.abs() * inputs.norm,
            cycles=self.cycles,
            threshold=self.threshold,
            stop_at_sign_change=self.stop_at_sign_change or allotment.pattern is not None,
        )
        return _swaps.swap(first, trade, allotment.pattern)
