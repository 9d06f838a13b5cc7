"""HAX: hashed and selected keys beside state-space layers."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class HAX(Unavailable):
    """Hashed and selected keys beside state-space layers."""

    card: ClassVar[MethodCard] = MethodCard(
        id="hax",
        family="attention",
        title="HAX",
        summary="State-space layers beside attention to keys in the query's hash bucket and to a few selected ones.",
        paper=Paper(
            title="Overcoming Long-Context Limitations of State-Space Models via Context-Dependent Sparse Attention",
            authors="Zhihao Zhan and Jianan Zhao and Zhaocheng Zhu and Jian Tang",
            year=2025,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2507.00449",
            key="zhan2025hax",
        ),
        unit="token",
        budgets=("sparsity", "tokens"),
        training="training",
        needs=("a hybrid of state-space layers and this attention, trained as one",),
        nearest="oracle-tokens",
        differs="finds keys by hashes and a learned selection, beside a state-space layer",
    )
