"""Static pruning, posting list by posting list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget


class TermPruning(LearnedSparse):
    """Every posting list is cut at one length; the longest lists, which cost a search most, lose most."""

    card: ClassVar[MethodCard] = MethodCard(
        id="term-pruning",
        family="retrieval",
        title="Term-centric static pruning",
        summary="Cuts every posting list after its largest weights at one length, so that a share is left.",
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
        differs="cuts the posting lists of terms, not the vectors of documents",
    )

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents pruned; queries as learned-sparse has them."""
        from sparsebench.retrieval.static_pruning import prune_terms

        documents, queries = super().sparsify(vectors, None)
        return (documents if budget is None else prune_terms(documents, budget.number)), queries
