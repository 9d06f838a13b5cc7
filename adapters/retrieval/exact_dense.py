"""Exact dense retrieval with a bi-encoder, the reference of approximate search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import RetrievalAdapter, Vectors

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.index import Index
    from sparsebench.systems.retrieval import EncoderSystem


class ExactDense(RetrievalAdapter):
    """Inner products of sentence embeddings with every document."""

    card: ClassVar[MethodCard] = MethodCard(
        id="exact-dense",
        family="retrieval",
        title="Exact dense retrieval",
        summary="Ranks all documents by the inner product of their embedding with the query's.",
        paper=Paper(
            key="reimers2019sentence",
            title="Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
            authors="Reimers, Nils and Gurevych, Iryna",
            year=2019,
            venue="EMNLP 2019",
            url="https://arxiv.org/abs/1908.10084",
        ),
        role="comparator",
        unit="vector",
        phases=(),
        budgets=(),
        training="weights",
        modes=("executed",),
    )
    accepts: ClassVar[tuple[str, ...]] = ("dense-encoder",)

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Embeddings of documents and queries."""
        documents = system.encoder.encode_documents(collection.documents())
        queries = system.encoder.encode_queries(collection.queries)
        facts = {"truncated_documents": documents.truncated, "truncated_queries": queries.truncated}
        ask = system.encoder.encode_queries
        return Vectors(documents.vectors, queries.vectors, documents.seconds, queries.seconds, facts, ask)

    def encoding(self) -> tuple[Any, ...]:
        """Shared by all methods that search these vectors."""
        return ("exact-dense",)

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """Every document is compared."""
        from sparsebench.retrieval.index import DenseIndex

        return DenseIndex(documents)
