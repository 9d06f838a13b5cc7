"""REFRAG: chunks of context as single vectors."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class REFRAG(Unavailable):
    """Chunks of context as single vectors."""

    card: ClassVar[MethodCard] = MethodCard(
        id="refrag",
        family="attention",
        title="REFRAG",
        summary="Chunks of retrieved passages enter as one vector each; a policy expands those that matter.",
        paper=Paper(
            title="REFRAG: Rethinking RAG based Decoding",
            authors="Xiaoqiang Lin and Aritra Ghosh and Bryan Kian Hsiang Low and others",
            year=2025,
            venue="arXiv:2509.01092",
            url="https://arxiv.org/abs/2509.01092",
            key="lin2025refrag",
        ),
        unit="chunk",
        training="training",
        needs=(
            "a chunk encoder and a projection that were trained with this model, and the policy that expands chunks",
        ),
        nearest="snapkv",
        differs="replaces chunks by learned vectors before they are read at all",
    )
