"""WGSEF: a regulariser that leaves k groups."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class WGSEF(Unavailable):
    """Training with the weighted group sparse envelope, which leaves a number of groups chosen beforehand."""

    card: ClassVar[MethodCard] = MethodCard(
        id="wgsef",
        family="pruning",
        title="WGSEF",
        summary="A regulariser during training leaves a chosen number of groups of weights and drives the others to "
        "zero.",
        paper=Paper(
            title="Learning k-Level Structured Sparse Neural Networks Using Group Envelope Regularization",
            authors="Yehonathan Refael and Iftach Arbel and Wasim Huleihel",
            year=2022,
            venue="arXiv:2212.12921",
            url="https://arxiv.org/abs/2212.12921",
            key="refael2022learning",
        ),
        role="method",
        unit="group",
        adaptivity="static",
        training="training",
        needs=("training with its regulariser",),
        nearest="hesso",
        differs="the number of groups is part of the penalty, which a proximal step solves",
    )
