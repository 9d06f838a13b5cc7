"""SSE: a sparse state in the place of softmax attention."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class SSE(Unavailable):
    """A sparse state in the place of softmax attention."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sse",
        family="attention",
        title="SSE",
        summary="A linear-attention state of many partitions, of which each token writes to a few.",
        paper=Paper(
            title="Scaling Linear Attention with Sparse State Expansion",
            authors="Yuqi Pan and Yongqi An and Zheng Li and Yuhong Chou and Ruijie Zhu and others",
            year=2025,
            venue="arXiv:2507.16577",
            url="https://arxiv.org/abs/2507.16577",
            key="pan2025sse",
        ),
        unit="state row",
        training="training",
        needs=("a model that was trained with it, or converted and trained on",),
        nearest="streaming-llm",
        differs="has a state of fixed size in the place of keys",
    )
