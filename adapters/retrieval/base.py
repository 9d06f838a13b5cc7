"""The retrieval family: a method says what its vectors are and what it keeps of them; everything else is here.

A method over vectors is a card, its knobs, and some of three hooks: `encode` (document and query vectors of a
collection), `sparsify` (what is kept of them at a budget) and `index` (what searches them). The base class shares
vectors between budgets, ranks with deterministic ties, and measures: non-zeros, what a search touches, index bytes,
latency with the encoder's share apart, recall of the exact ranking where the search is approximate. A method that
ranks in some other way, such as a fusion of two retrievers, writes the wider hook `retrieve`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.errors import InputError
from sparsebench.systems.base import System

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.hits import Hits
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
        ask: Encodes some queries by themselves, for their latency; None where that is not to be measured.
        state: What a method's `encode` leaves for its own `sparsify`.
    """

    documents: Any
    queries: Any
    document_seconds: float
    query_seconds: float
    facts: dict[str, Any]
    ask: Callable[[Sequence[str]], Any] | None = None
    state: Any = None


@dataclass(frozen=True)
class Engine:
    """A method's index over a collection, and what it is asked.

    Attributes:
        vectors: All vectors, before anything is left out.
        documents: The documents as they are indexed.
        queries: The queries as they are asked.
        index: What searches.
        build_seconds: Wall time of building the index.
    """

    vectors: Vectors
    documents: Any
    queries: Any
    index: Index
    build_seconds: float


class RankingAdapter(Adapter):
    """A method that ranks a collection's documents for each of its queries, in whatever way."""

    accepts: ClassVar[tuple[str, ...]] = ("sparse-encoder",)

    @abstractmethod
    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """The best `depth` documents of each query, with what finding them took."""

    def check_budget(self, budget: Budget | None) -> None:
        """A retrieval method without a budget leaves nothing out: the baseline of its own budgets."""
        if budget is not None:
            super().check_budget(budget)

    def check_system(self, system: EncoderSystem) -> None:
        """Whether the method runs on such a system.

        Raises:
            InputError: It does not.
        """
        if system.kind not in self.accepts:
            raise InputError(f"{self.card.id} runs on a {' or '.join(self.accepts)}, not on a {system.kind}")

    @contextmanager
    def attach(self, system: EncoderSystem, prepared: Prepared, budget: Budget | None) -> Iterator[AttachedRetriever]:
        """A retriever at a budget; the system's vectors stay as they are."""
        self.check_system(system)
        self.check_budget(budget)
        yield AttachedRetriever(self, system, budget)


class AttachedRetriever(System):
    """A retrieval method at a budget, over an encoder."""

    def __init__(self, method: RankingAdapter, system: EncoderSystem, budget: Budget | None) -> None:
        self.method = method
        self.system = system
        self.budget = budget
        self.kind, self.ref, self.fingerprint = system.kind, system.ref, system.fingerprint

    def describe(self) -> dict[str, Any]:
        """Facts of the encoder."""
        return self.system.describe()

    def retrieve(self, collection: Collection, depth: int) -> Retrieved:
        """See `systems.retrieval.Retriever`."""
        found = self.method.retrieve(self.system, self.budget, collection, depth)
        found.facts |= {"collection": collection.describe(), "depth": depth}
        return found


class RetrievalAdapter(RankingAdapter):
    """A method over one set of vectors. Subclasses set `card` and `accepts`, and write `encode`; others as needed."""

    one_vector: ClassVar[bool] = True
    """Whether each text is one vector, as a row of a matrix."""
    approximate: ClassVar[bool] = False
    """Whether `index` may miss what `exact` finds; recall of the exact ranking is then measured."""

    @abstractmethod
    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Vectors before anything is left out of them; shared by all budgets."""

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents and queries as they are indexed and asked."""
        return vectors.documents, vectors.queries

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """What searches the documents, exactly unless the method has an index of its own."""
        return self.exact(documents)

    def exact(self, documents: Any) -> Index:
        """What ranks documents exactly: an inverted index of sparse vectors, products of dense ones."""
        from sparsebench.retrieval.index import DenseIndex, InvertedIndex

        return InvertedIndex(documents) if hasattr(documents, "nnz") else DenseIndex(documents)

    def encoding(self) -> tuple[Any, ...]:
        """What `encode` depends on beside system and collection; methods that agree in it share vectors."""
        return (self.card.id,)

    def exact_encoding(self) -> tuple[Any, ...]:
        """What the exact ranking depends on; methods that agree in it share the ranking."""
        return self.encoding()

    def engine(self, system: EncoderSystem, budget: Budget | None, collection: Collection) -> Engine:
        """Encode once for all budgets, leave out, index."""
        vectors: Vectors = remembered(system, collection, self.encoding(), lambda: self.encode(system, collection))
        documents, queries = self.sparsify(vectors, budget)
        start = time.perf_counter()
        index = self.index(documents, budget)
        return Engine(vectors, documents, queries, index, time.perf_counter() - start)

    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """Encode once, leave out, index, search, measure."""
        from sparsebench.retrieval.run import Run
        from sparsebench.systems.retrieval import Retrieved

        engine = self.engine(system, budget, collection)
        start = time.perf_counter()
        hits = engine.index.search(engine.queries, depth)
        seconds = time.perf_counter() - start
        counted = {**self.sizes(engine, hits), "speed": self.speed(engine, collection, depth, seconds)}
        by_query: dict[str, Any] = {}
        if self.approximate:
            from sparsebench.retrieval.measure import recall_of_exact, recalls_of_exact

            exact = self._exact_hits(system, engine.vectors, collection)
            by_query = {f"recall@{k} of exact search": recalls_of_exact(exact, hits, k) for k in EXACT_DEPTHS}
            counted |= {f"recall@{k} of exact search": recall_of_exact(exact, hits, k) for k in EXACT_DEPTHS}
        run = Run(collection.query_ids, collection.doc_ids, hits)
        return Retrieved(run, counted, dict(engine.vectors.facts), by_query)

    def sizes(self, engine: Engine, hits: Hits) -> dict[str, Any]:
        """What the vectors hold, the index takes and the search touched; see `retrieval.measure`."""
        from sparsebench.retrieval.measure import dense_sizes, sparse_sizes

        vectors, index = engine.vectors, engine.index
        if not hasattr(engine.documents, "nnz"):
            return dense_sizes(engine.documents, index, hits)
        full, kept = (vectors.documents, vectors.queries), (engine.documents, engine.queries)
        return sparse_sizes(full, kept, index, hits)

    def speed(self, engine: Engine, collection: Collection, depth: int, seconds: float) -> dict[str, float]:
        """Measured times; `seconds` is that of searching for all queries at once."""
        from sparsebench.retrieval.measure import latencies

        return {
            "encode_documents_s": engine.vectors.document_seconds,
            "build_index_s": engine.build_seconds,
            "queries_per_second": len(collection.query_ids) / seconds,
            **latencies(engine.vectors.ask, engine.index, collection.queries, engine.queries, depth),
        }

    def _exact_hits(self, system: EncoderSystem, vectors: Vectors, collection: Collection) -> Hits:
        def search() -> Hits:
            return self.exact(vectors.documents).search(vectors.queries, max(EXACT_DEPTHS))

        hits: Hits = remembered(system, collection, ("exact", *self.exact_encoding()), search)
        return hits


EXACT_DEPTHS = (10, 100)
"""Depths at which an approximate ranking is held against the exact one."""


def remembered(system: EncoderSystem, collection: Collection, name: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gave the first time for this collection on this system."""
    return system.remember((name, collection.content_hash, collection.field_policy), make)
