"""Static pruning, document by document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget


class DocumentPruning(LearnedSparse):
    """Every document keeps equally many of its largest terms; short documents stay whole."""

    card: ClassVar[MethodCard] = MethodCard(
        id="document-pruning",
        family="retrieval",
        title="Document-centric static pruning",
        summary="Keeps as many of its largest terms for every document as a share of all postings allows.",
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
        nearest="learned-sparse",
        differs="is given a share of all postings, not a number of terms",
    )

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents pruned; queries as learned-sparse has them."""
        from sparsebench.retrieval.static_pruning import prune_documents

        documents, queries = super().sparsify(vectors, None)
        return (documents if budget is None else prune_documents(documents, budget.number)), queries
