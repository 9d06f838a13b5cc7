"""The grid of the unified framework for learned sparse retrieval, on one released encoder."""

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


class UnifiedLsr(LearnedSparse):
    """A cell of the grid: how queries are weighted, how documents are, and how many terms are added to them.

    On a released SPLADE encoder `mlp` means the encoder's weights of the text's own wordpieces; trained cells, with
    heads of their own, come from `sparsebench train-sparse` and run as `learned-sparse`.
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="unified-lsr",
        family="retrieval",
        title="Unified framework for learned sparse retrieval",
        summary="Weights a text's own wordpieces by 1 or by the encoder, and adds none, some or all others.",
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
        nearest="expansion-off",
        differs="chooses both sides' encoders at once, and can add a given number of terms to documents",
        deviations=(
            "one encoder, trained with expansion on both sides, serves all cells; the paper trains each cell",
            "documents are expanded by the encoder's own terms, not by a separate model",
        ),
    )

    query: Literal["binary", "mlp", "mlm"] = Field(
        default="mlp", description="Weights of query terms: 1, the encoder's for the text's own, or all of them."
    )
    document: Literal["mlp", "expanded-mlp", "mlm"] = Field(
        default="expanded-mlp", description="The document's own terms, with `expansion` more, or all of them."
    )
    expansion: int = Field(default=32, ge=1, description="Largest other terms that `expanded-mlp` keeps of a document.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """The encoder's vectors, and which terms the texts themselves have."""
        from sparsebench.retrieval.encoders import wordpieces

        encoder = system.encoder
        vectors = splade_vectors(system, collection)

        def own(texts: Any) -> Any:
            return wordpieces(encoder.tokenizer, texts, encoder.terms, encoder.max_length)

        def ask(texts: Any) -> Any:
            if self.query == "binary":
                return own(texts)
            encoded = encoder.encode_queries(texts).vectors
            return encoded.multiply(own(texts)) if self.query == "mlp" else encoded

        start = time.perf_counter()
        queries = own(collection.queries)
        seconds = time.perf_counter() - start
        documents = None if self.document == "mlm" else own(collection.documents())
        encoding = 0.0 if self.query == "binary" else vectors.query_seconds
        return replace(vectors, ask=ask, state=(documents, queries), query_seconds=encoding + seconds)

    def encoding(self) -> tuple[Any, ...]:
        """Which sides look at the texts, and how queries are asked."""
        return (self.card.id, self.query, self.document == "mlm")

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Both sides as the cell says; of the documents', the largest when there is a budget."""
        from sparsebench.retrieval.sparse_vectors import keep_largest

        documents, queries = vectors.documents, vectors.queries
        own_documents, own_queries = vectors.state
        if own_documents is not None:
            whole = documents
            documents = whole.multiply(own_documents).tocsr()
            if self.document == "expanded-mlp":
                added = (whole - documents).tocsr()
                added.eliminate_zeros()
                documents = (documents + keep_largest(added, self.expansion)).tocsr()
        if self.query == "binary":
            queries = own_queries
        elif self.query == "mlp":
            queries = queries.multiply(own_queries).tocsr()
        return super().sparsify(replace(vectors, documents=documents, queries=queries), budget)
