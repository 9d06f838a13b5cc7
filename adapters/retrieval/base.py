"""The retrieval family: a method says what its vectors are and what it keeps of them; everything else is here.

A method is a card, its knobs, and some of three hooks: `encode` (document and query vectors of a collection),
`sparsify` (what is kept of them at a budget) and `index` (what searches them). The base class shares vectors between
budgets, ranks with deterministic ties, and measures: non-zeros, postings touched, index bytes, latency with the
encoder's share apart.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.errors import InputError
from sparsebench.systems.base import System

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.index import Index
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved


@dataclass(frozen=True)
class Vectors:
    """Vectors of a collection.

    Attributes:
        documents: [documents, terms] sparse or [documents, dimensions] dense, float32.
        queries: [queries, terms] or [queries, dimensions], float32.
        document_seconds: Wall time of encoding the documents.
        query_seconds: Wall time of encoding the queries.
        facts: For the record: truncated texts, analyser.
    """

    documents: Any
    queries: Any
    document_seconds: float
    query_seconds: float
    facts: dict[str, Any]


class RetrievalAdapter(Adapter):
    """One retrieval method. Subclasses set `card` and `accepts`, and write `encode`; sparse ones `sparsify`."""

    accepts: ClassVar[tuple[str, ...]] = ("sparse-encoder",)

    @abstractmethod
    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Vectors before anything is left out of them; shared by all budgets."""

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents and queries as they are indexed and asked."""
        return vectors.documents, vectors.queries

    def index(self, documents: Any) -> Index:
        """What searches the documents; an exact inverted index unless the method has its own."""
        from sparsebench.retrieval.index import InvertedIndex

        return InvertedIndex(documents)

    def encoding(self) -> tuple[Any, ...]:
        """What `encode` depends on beside system and collection; methods that agree in it share vectors."""
        return (self.card.id,)

    def check_budget(self, budget: Budget | None) -> None:
        """A retrieval method without a budget leaves nothing out: the baseline of its own budgets."""
        if budget is not None:
            super().check_budget(budget)

    @contextmanager
    def attach(self, system: EncoderSystem, prepared: Prepared, budget: Budget | None) -> Iterator[AttachedRetriever]:
        """A retriever at a budget; the system's vectors stay as they are."""
        if system.kind not in self.accepts:
            raise InputError(f"{self.card.id} runs on a {' or '.join(self.accepts)}, not on a {system.kind}")
        self.check_budget(budget)
        yield AttachedRetriever(self, system, budget)


class AttachedRetriever(System):
    """A retrieval method at a budget, over an encoder."""

    def __init__(self, method: RetrievalAdapter, system: EncoderSystem, budget: Budget | None) -> None:
        self.method = method
        self.system = system
        self.budget = budget
        self.kind, self.ref, self.fingerprint = system.kind, system.ref, system.fingerprint

    def describe(self) -> dict[str, Any]:
        """Facts of the encoder."""
        return self.system.describe()

    def retrieve(self, collection: Collection, depth: int) -> Retrieved:
        """Encode once, leave out, index, search; see `systems.retrieval.Retriever`."""
        from sparsebench.retrieval.run import Run
        from sparsebench.systems.retrieval import Retrieved

        key = (self.method.encoding(), collection.content_hash, collection.field_policy)
        vectors: Vectors = self.system.remember(key, lambda: self.method.encode(self.system, collection))
        documents, queries = self.method.sparsify(vectors, self.budget)
        start = time.perf_counter()
        index = self.method.index(documents)
        built = time.perf_counter()
        hits = index.search(queries, depth)
        searched = time.perf_counter()
        count = max(1, len(collection.query_ids))
        counted = {
            **_sizes(vectors, documents, queries, index, hits),
            "speed": {
                "encode_documents_s": vectors.document_seconds,
                "build_index_s": built - start,
                "encode_query_ms": 1000 * vectors.query_seconds / count,
                "search_query_ms": 1000 * (searched - built) / count,
            },
        }
        facts = {**vectors.facts, "collection": collection.describe(), "depth": depth}
        return Retrieved(Run(collection.query_ids, collection.doc_ids, hits), counted, facts)


def _sizes(vectors: Vectors, documents: Any, queries: Any, index: Any, hits: Any) -> dict[str, Any]:
    touched = int(hits.touched.sum()) if hits.touched is not None else None
    if not hasattr(documents, "nnz"):
        flops = None if touched is None else 2.0 * touched * documents.shape[1]
        return {"flops": flops, "flops_dense": flops, "bytes": float(index.nbytes), "bytes_dense": float(index.nbytes)}
    from sparsebench.retrieval.index import InvertedIndex
    from sparsebench.retrieval.sparse_vectors import flops as flops_measure

    full = InvertedIndex(vectors.documents)
    lengths = full.posting_lengths
    dense_touched = int(lengths[vectors.queries.indices].sum())
    return {
        "sparsity": 1 - documents.nnz / max(1, vectors.documents.nnz),
        "sparsity_of": "terms of the documents' vectors",
        "flops": 2.0 * (touched if touched is not None else dense_touched),
        "flops_dense": 2.0 * dense_touched,
        "bytes": float(index.nbytes),
        "bytes_dense": float(full.nbytes),
        "terms a document": documents.nnz / max(1, documents.shape[0]),
        "terms a query": queries.nnz / max(1, queries.shape[0]),
        "FLOPS measure": flops_measure(documents, queries),
    }
