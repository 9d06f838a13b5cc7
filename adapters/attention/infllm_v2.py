"""InfLLM v2: blocks by compressed keys, in a model trained for them."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class InfLLMv2(Unavailable):
    """Blocks by compressed keys, in a model trained for them."""

    card: ClassVar[MethodCard] = MethodCard(
        id="infllm-v2",
        family="attention",
        title="InfLLM v2",
        summary="Compressed keys name the blocks that a group of heads reads, in a model that was trained with it.",
        paper=Paper(
            title="MiniCPM4: Ultra-Efficient LLMs on End Devices",
            authors="MiniCPM Team",
            year=2025,
            venue="arXiv:2506.07900",
            url="https://arxiv.org/abs/2506.07900",
            key="minicpm2025minicpm4",
        ),
        unit="block",
        budgets=("sparsity", "tokens"),
        training="weights",
        needs=("a checkpoint of MiniCPM4, whose attention was trained with it, and its own code",),
        nearest="block-topk",
        differs="scores overlapping windows of keys, in a model trained to be read so",
    )
