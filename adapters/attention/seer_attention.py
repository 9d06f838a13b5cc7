"""SeerAttention: blocks by a learned gate on pooled queries and keys."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class SeerAttention(Unavailable):
    """Blocks by a learned gate on pooled queries and keys."""

    card: ClassVar[MethodCard] = MethodCard(
        id="seer-attention",
        family="attention",
        title="SeerAttention",
        summary="A small gate on pooled queries and keys, distilled for each layer, names the blocks of keys.",
        paper=Paper(
            title="SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs",
            authors="Yizhao Gao and Zhichen Zeng and Dayou Du and Shijie Cao and Hayden Kwok-Hay So and others",
            year=2024,
            venue="arXiv:2410.13276",
            url="https://arxiv.org/abs/2410.13276",
            key="gao2024seerattention",
        ),
        unit="block",
        adaptivity="coverage",
        budgets=("sparsity", "tokens", "coverage"),
        training="weights",
        needs=("the gates that were distilled for this very model (the authors release them for some)",),
        nearest="block-topk",
        differs="scores blocks by a learned gate in the place of plain means",
    )
