"""Combiner: near keys and abstractions of far ones."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class Combiner(Unavailable):
    """Near keys and abstractions of far ones."""

    card: ClassVar[MethodCard] = MethodCard(
        id="combiner",
        family="attention",
        title="Combiner",
        summary="Each query attends to near keys and to learned abstractions of far groups of keys.",
        paper=Paper(
            title="Combiner: Full Attention Transformer with Sparse Computation Cost",
            authors="Hongyu Ren and Hanjun Dai and Zihang Dai and Mengjiao Yang and Jure Leskovec and others",
            year=2021,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2107.05768",
            key="ren2021combiner",
        ),
        unit="block",
        adaptivity="static",
        training="training",
        needs=("a model trained from scratch with it",),
        nearest="power-attention",
        differs="attends to learned summaries of far groups instead of some of their keys",
    )
