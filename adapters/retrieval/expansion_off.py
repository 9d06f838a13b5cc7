"""Learned sparse retrieval without expansion: weights are learned, terms are the text's own."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse, splade_vectors

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class ExpansionOff(LearnedSparse):
    """Terms that are no wordpiece of the query's, or the document's, own text are left out."""

    card: ClassVar[MethodCard] = MethodCard(
        id="expansion-off",
        family="retrieval",
        title="Learned sparse retrieval without expansion",
        summary="Leaves out the terms that the encoder adds to a query, a document or both, and keeps learned weights.",
        paper=Paper(
            key="nguyen2023unified",
            title="A Unified Framework for Learned Sparse Retrieval",
            authors="Nguyen, Thong and MacAvaney, Sean and Yates, Andrew",
            year=2023,
            venue="ECIR 2023",
            url="https://arxiv.org/abs/2303.13416",
        ),
        unit="term",
        phases=(),
        budgets=("terms",),
        training="weights",
        modes=("executed",),
        nearest="query-pruning",
        differs="terms go for not being in the text, not for being small",
        deviations=("the encoder was trained with expansion; the paper trains a model for each setting",),
    )

    side: Literal["queries", "documents", "both"] = Field(default="queries", description="Whose added terms go.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """The vectors of learned-sparse, and which terms the texts themselves have."""
        from sparsebench.retrieval.encoders import wordpieces

        encoder = system.encoder
        vectors = splade_vectors(system, collection)

        def own(texts: Any) -> Any:
            return wordpieces(encoder.tokenizer, texts, encoder.terms, encoder.max_length)

        def ask(texts: Any) -> Any:
            encoded = encoder.encode_queries(texts).vectors
            return encoded if self.side == "documents" else encoded.multiply(own(texts))

        start = time.perf_counter()
        queries = own(collection.queries) if self.side != "documents" else None
        seconds = time.perf_counter() - start
        documents = own(collection.documents()) if self.side != "queries" else None
        return replace(vectors, ask=ask, state=(documents, queries), query_seconds=vectors.query_seconds + seconds)

    def encoding(self) -> tuple[Any, ...]:
        """The side decides which texts are looked at."""
        return (self.card.id, self.side)

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """The texts' own terms; of the documents', the largest when there is a budget."""
        documents, queries = vectors.documents, vectors.queries
        own_documents, own_queries = vectors.state
        if own_documents is not None:
            documents = documents.multiply(own_documents).tocsr()
        if own_queries is not None:
            queries = queries.multiply(own_queries).tocsr()
        return super().sparsify(replace(vectors, documents=documents, queries=queries), budget)
