"""Learned sparse retrieval with a budget of terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import RetrievalAdapter, Vectors, remembered

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class LearnedSparse(RetrievalAdapter):
    """SPLADE: terms weighted by the masked-language head, the largest of each document kept."""

    card: ClassVar[MethodCard] = MethodCard(
        id="learned-sparse",
        family="retrieval",
        title="Learned sparse retrieval (SPLADE)",
        summary="Weights every vocabulary term by log(1 + ReLU) of its largest logit, and keeps a document's largest.",
        paper=Paper(
            key="formal2021splade",
            title="SPLADE: Sparse Lexical and Expansion Model for First Stage Ranking",
            authors="Formal, Thibault and Piwowarski, Benjamin and Clinchant, Stéphane",
            year=2021,
            venue="SIGIR 2021",
            url="https://arxiv.org/abs/2107.05720",
        ),
        unit="term",
        phases=(),
        budgets=("terms",),
        training="weights",
        modes=("executed",),
        nearest="random-terms",
        differs="keeps the terms of largest weight, not random ones",
        deviations=("the budget prunes vectors of a trained encoder; the paper controls their length in training",),
    )

    query_terms: int | None = Field(default=None, ge=1, description="Largest terms kept of each query; all when None.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Document and query vectors by one encoder."""
        return splade_vectors(system, collection)

    def encoding(self) -> tuple[Any, ...]:
        """Shared by all methods that prune these vectors."""
        return ("learned-sparse",)

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """The largest terms of each vector."""
        from sparsebench.retrieval.sparse_vectors import keep_largest

        documents = vectors.documents if budget is None else keep_largest(vectors.documents, int(budget.value))
        queries = vectors.queries if self.query_terms is None else keep_largest(vectors.queries, self.query_terms)
        return documents, queries


def splade_vectors(system: EncoderSystem, collection: Collection) -> Vectors:
    """Document and query vectors by one sparse encoder, computed once for all methods."""

    def encode() -> Vectors:
        encoder = system.encoder
        documents = encoder.encode_documents(collection.documents())
        queries = encoder.encode_queries(collection.queries)
        facts = {"truncated_documents": documents.truncated, "truncated_queries": queries.truncated}
        seconds = (documents.seconds, queries.seconds)
        return Vectors(documents.vectors, queries.vectors, *seconds, facts, encoder.encode_queries)

    vectors: Vectors = remembered(system, collection, ("splade",), encode)
    return vectors
