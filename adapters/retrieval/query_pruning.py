"""Query pruning: only the largest terms of a query are searched for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget


class QueryPruning(LearnedSparse):
    """The largest terms of each query; documents stay as they are, unless `query_terms` says less still."""

    card: ClassVar[MethodCard] = MethodCard(
        id="query-pruning",
        family="retrieval",
        title="Query pruning",
        summary="Searches with the largest terms of each query's vector, over documents that keep all of theirs.",
        paper=Paper(
            key="lassance2024twostep",
            title="Two-Step SPLADE: Simple, Efficient and Effective Approximation of SPLADE",
            authors="Lassance, Carlos and Déjean, Hervé and Clinchant, Stéphane and Tonellotto, Nicola",
            year=2024,
            venue="ECIR 2024",
            url="https://arxiv.org/abs/2404.13357",
        ),
        unit="term",
        phases=(),
        budgets=("terms",),
        training="weights",
        modes=("executed",),
        nearest="learned-sparse",
        differs="the budget is of the query's terms, not of the documents'",
        deviations=("the paper prunes documents too, and ranks what it finds again with the whole vectors",),
    )

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """All documents; the largest terms of each query."""
        from sparsebench.retrieval.sparse_vectors import keep_largest

        documents, queries = super().sparsify(vectors, None)
        return documents, queries if budget is None else keep_largest(queries, int(budget.value))
