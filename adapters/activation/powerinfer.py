"""PowerInfer: neurons that are often active on the GPU, the others on the processor."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class PowerInfer(Unavailable):
    """An engine: trained predictors say which neurons of a ReLU model a token needs, and only those are computed."""

    card: ClassVar[MethodCard] = MethodCard(
        id="powerinfer",
        family="activation",
        title="PowerInfer",
        summary="Predictors name the neurons that a token will activate; hot ones are kept on the GPU and cold ones "
        "are computed on the processor.",
        paper=Paper(
            title="PowerInfer: Fast Large Language Model Serving with a Consumer-grade GPU",
            authors="Yixin Song and Zeyu Mi and Haotong Xie and Haibo Chen",
            year=2024,
            venue="ACM Symposium on Operating Systems Principles",
            url="https://arxiv.org/abs/2312.12456",
            key="song2024powerinfer",
        ),
        role="comparator",
        unit="neuron",
        phases=("prefill", "decode"),
        adaptivity="threshold",
        training="training",
        needs=(
            "a model whose MLPs have ReLU activations",
            "predictors that were trained for this very model",
            "the PowerInfer engine, which is built from source",
        ),
        nearest="top-k-mlp",
        differs="predicts a token's neurons before they are computed, and places them by how often they are active",
    )
