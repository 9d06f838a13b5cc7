"""Static pruning by one threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget


class QuantilePruning(LearnedSparse):
    """The largest weights stay, wherever they are."""

    card: ClassVar[MethodCard] = MethodCard(
        id="quantile-pruning",
        family="retrieval",
        title="Agnostic static pruning",
        summary="Keeps the postings whose weight is above one quantile of all weights.",
        paper=Paper(
            key="lassance2023static",
            title="A Static Pruning Study on Sparse Neural Retrievers",
            authors="Lassance, Carlos and Lupart, Simon and Déjean, Hervé and Clinchant, Stéphane and "
            "Tonellotto, Nicola",
            year=2023,
            venue="SIGIR 2023",
            url="https://arxiv.org/abs/2304.12702",
        ),
        unit="posting",
        phases=(),
        budgets=("sparsity",),
        training="weights",
        modes=("executed",),
        nearest="document-pruning",
        differs="one threshold over all postings; a document or a list may keep all or nothing",
    )

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents pruned; queries as learned-sparse has them."""
        from sparsebench.retrieval.static_pruning import prune_postings

        documents, queries = super().sparsify(vectors, None)
        return (documents if budget is None else prune_postings(documents, budget.number)), queries
