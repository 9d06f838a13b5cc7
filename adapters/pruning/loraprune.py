"""LoRAPrune: groups of weights by gradients of low-rank adapters."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class LoRAPrune(Unavailable):
    """Structured pruning whose importance comes from the gradients of LoRA factors in fine-tuning."""

    card: ClassVar[MethodCard] = MethodCard(
        id="loraprune",
        family="pruning",
        title="LoRAPrune",
        summary="Heads and channels go by an importance that gradients of LoRA factors estimate during fine-tuning.",
        paper=Paper(
            title="LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning",
            authors="Mingyang Zhang and Hao Chen and Chunhua Shen and Zhen Yang and Linlin Ou and Xinyi Yu and Bohan "
            "Zhuang",
            year=2024,
            venue="Findings of the Association for Computational Linguistics",
            url="https://arxiv.org/abs/2305.18403",
            key="zhang2024loraprune",
        ),
        role="method",
        unit="channel",
        adaptivity="static",
        training="training",
        needs=("fine-tuning with LoRA, in which the gradients arise",),
        nearest="cfsp",
        differs="importance comes from gradients of adapters that are trained meanwhile",
    )
