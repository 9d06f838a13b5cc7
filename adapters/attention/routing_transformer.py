"""Routing Transformer: keys of a query's cluster."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class RoutingTransformer(Unavailable):
    """Keys of a query's cluster."""

    card: ClassVar[MethodCard] = MethodCard(
        id="routing-transformer",
        family="attention",
        title="Routing Transformer",
        summary="Queries and keys are clustered by online k-means; a query reads the keys of its cluster.",
        paper=Paper(
            title="Efficient Content-Based Sparse Attention with Routing Transformers",
            authors="Aurko Roy and Mohammad Saffar and Ashish Vaswani and David Grangier",
            year=2021,
            venue="Transactions of the Association for Computational Linguistics",
            url="https://arxiv.org/abs/2003.05997",
            key="roy2021routing",
        ),
        unit="token",
        budgets=("sparsity", "tokens"),
        training="training",
        needs=("a model trained from scratch with it, its centroids included",),
        nearest="oracle-tokens",
        differs="reads the keys of a learned cluster instead of those with the highest scores",
    )
