"""Turbo-VBI: structured sparsity by Bayesian inference."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class TurboVBI(Unavailable):
    """Variational inference under a three-layer prior that favours clusters of weights and whole neurons."""

    card: ClassVar[MethodCard] = MethodCard(
        id="turbo-vbi",
        family="pruning",
        title="Turbo-VBI",
        summary="Weights are inferred under a hierarchical prior for structured sparsity; those that it holds at zero"
        " go.",
        paper=Paper(
            title="Structured Bayesian Compression for Deep Neural Networks Based on The Turbo-VBI Approach",
            authors="Chengyu Xia and Danny H. K. Tsang and Vincent K. N. Lau",
            year=2023,
            venue="IEEE Transactions on Signal Processing",
            url="https://arxiv.org/abs/2302.10483",
            key="xia2023structured",
        ),
        role="method",
        unit="weight",
        adaptivity="static",
        training="training",
        needs=("variational training under its prior",),
        nearest="wgsef",
        differs="a prior and inference instead of a penalty",
    )
