"""BM25, the lexical reference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import RetrievalAdapter, Vectors

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class Bm25(RetrievalAdapter):
    """BM25 through bm25s, with everything stated that changes its numbers."""

    card: ClassVar[MethodCard] = MethodCard(
        id="bm25",
        family="retrieval",
        title="BM25",
        summary="Scores documents by the frequencies of the query's terms in them, without training.",
        paper=Paper(
            key="robertson2009probabilistic",
            title="The Probabilistic Relevance Framework: BM25 and Beyond",
            authors="Robertson, Stephen and Zaragoza, Hugo",
            year=2009,
            venue="Foundations and Trends in Information Retrieval 3(4)",
            url="https://doi.org/10.1561/1500000019",
        ),
        role="comparator",
        unit="term",
        phases=(),
        budgets=(),
        modes=("executed",),
    )
    accepts: ClassVar[tuple[str, ...]] = ("lexical",)

    k1: float = Field(default=0.9, ge=0, description="Saturation of the term frequency.")
    b: float = Field(default=0.4, ge=0, le=1, description="How far length counts.")
    method: Literal["lucene", "robertson", "atire"] = "lucene"
    stemmer: str | None = Field(default="porter", description="A Snowball stemmer; None for whole words.")
    stopwords: str | None = Field(default="en", description="A stop-word list of bm25s; None for none.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Weights of every term in every document; counts of the query's terms."""
        from sparsebench.retrieval.bm25 import BM25, Analyser

        start = time.perf_counter()
        config = BM25(self.k1, self.b, self.method, Analyser(self.stemmer, self.stopwords))
        index = config.index(collection.documents())
        indexed = time.perf_counter()
        queries = index.encode_queries(collection.queries)
        seconds = (indexed - start, time.perf_counter() - indexed)
        return Vectors(index.weights, queries, *seconds, {"bm25": config.describe()}, index.encode_queries)

    def encoding(self) -> tuple[Any, ...]:
        """All knobs."""
        return (self.card.id, *sorted(self.config.items()))
