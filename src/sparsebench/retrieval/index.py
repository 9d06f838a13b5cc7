"""Search engines behind one interface: exact inverted index, exact dense search, HNSW graph.

A document without a positive score is no hit of an inverted index: it shares no term with the query. Dense engines rank
every document. All rank ties by document number, as `retrieval.hits` says, so one engine can stand in for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError, MissingError
from sparsebench.retrieval.hits import Hits, best
from sparsebench.retrieval.sparse_vectors import CSR, compact

_QUERIES_AT_ONCE = 64
_DOCS_AT_ONCE = 1 << 16


class Index(Protocol):
    """Documents that can be searched."""

    @property
    def size(self) -> int:
        """How many documents there are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, or of the graph, that a search reads."""

    def search(self, queries: Any, k: int) -> Hits:
        """The k best documents of each query, fewer where there are fewer."""


@runtime_checkable
class TieredIndex(Index, Protocol):
    """An index of which a part lies on disk; `nbytes` is the part in memory."""

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk."""


class InvertedIndex:
    """Exact search over sparse vectors by the postings of the query's terms.

    Args:
        docs: Document vectors, `[documents, terms]`: float32, or whole numbers that `scale` makes weights of.
        scale: What one unit of a stored weight is worth.
    """

    def __init__(self, docs: CSR, scale: float = 1.0) -> None:
        self._scale = np.float32(scale)
        self.size: int = docs.shape[0]
        self._postings = compact(docs.T.tocsr())
        self._postings.sort_indices()
        self._lengths: NDArray[np.int64] = np.diff(self._postings.indptr).astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of postings: weights, document numbers and where each term's list starts."""
        return int(self._postings.data.nbytes + self._postings.indices.nbytes + self._postings.indptr.nbytes)

    @property
    def posting_lengths(self) -> NDArray[np.int64]:
        """Documents that have each term, `int64 [terms]`."""
        return self._lengths

    def search(self, queries: CSR, k: int) -> Hits:
        """The k best documents of each query among those that score above 0.

        Args:
            queries: Query vectors, `float32 [queries, terms]`.
            k: How many documents; more than there are is allowed.

        Raises:
            InputError: k is below 1, or the vocabularies differ in size.
        """
        _check_depth(k)
        if queries.shape[1] != self._postings.shape[0]:
            raise InputError(f"queries have {queries.shape[1]} terms, the index {self._postings.shape[0]}")
        rows, touched = [], []
        for begin, end in pairwise(queries.indptr.tolist()):
            terms = queries.indices[begin:end]
            scores = (queries.data[begin:end] * self._scale).astype(np.float32, copy=False) @ self._postings[terms]
            found = np.flatnonzero(scores > 0)
            rows.append(best(scores[found], k, found))
            touched.append(int(self._lengths[terms].sum()))
        return Hits.from_rows(rows, touched)


class DenseIndex:
    """Exact search over dense vectors by inner product.

    Args:
        docs: Document vectors, `[documents, dimensions]`; held in single precision.
    """

    def __init__(self, docs: NDArray[np.floating]) -> None:
        self._docs = _single(docs)
        self.size = len(self._docs)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return int(self._docs.nbytes)

    def search(self, queries: NDArray[np.floating], k: int) -> Hits:
        """The k best documents of each query.

        Args:
            queries: Query vectors, `[queries, dimensions]`.
            k: How many documents; more than there are is allowed.

        Raises:
            InputError: k is below 1, or the dimensions differ.
        """
        _check_depth(k)
        queries = _checked(queries, self._docs.shape[1])
        rows = []
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            block = queries[first : first + _QUERIES_AT_ONCE]
            parts = [self._search_part(block, k, start) for start in range(0, self.size, _DOCS_AT_ONCE)]
            for found in zip(*parts, strict=True):
                docs = np.concatenate([docs for docs, _ in found])
                scores = np.concatenate([scores for _, scores in found])
                rows.append(best(scores, k, docs))
        return Hits.from_rows(rows, np.full(len(rows), self.size))

    def _search_part(
        self, queries: NDArray[np.float32], k: int, start: int
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """The k best of one block of documents, for each query."""
        scores = queries @ self._docs[start : start + _DOCS_AT_ONCE].T
        docs = np.arange(start, start + scores.shape[1])
        return [best(row, k, docs) for row in scores]


@dataclass(frozen=True)
class HnswGraph:
    """How an HNSW graph is built and searched (Malkov and Yashunin, 2018).

    Attributes:
        links: Links of a node in each layer above the lowest, M.
        ef_construction: Candidates held while building.
        ef_search: Candidates held while searching; raised to k where k is more.
        seed: Seed of the layers. The graph is built in one thread: in several it would differ from build to build.
    """

    links: int = 16
    ef_construction: int = 200
    ef_search: int = 100
    seed: int = 0


class HnswIndex:
    """Approximate search over dense vectors by inner product, in a graph of near neighbours.

    hnswlib does not tell how many vectors it compared, so `Hits.touched` is None.

    Args:
        docs: Document vectors, `[documents, dimensions]`.
        graph: How the graph is built and searched.

    Raises:
        MissingError: hnswlib is not installed.
    """

    def __init__(self, docs: NDArray[np.floating], graph: HnswGraph | None = None) -> None:
        try:
            import hnswlib
        except ImportError as error:
            raise MissingError("HNSW search needs hnswlib", "pip install 'sparsebench[ann]'") from error
        self.graph = graph or HnswGraph()
        self.size, self._dimensions = docs.shape
        self._index = hnswlib.Index(space="ip", dim=self._dimensions)
        self._index.init_index(
            max_elements=self.size,
            M=self.graph.links,
            ef_construction=self.graph.ef_construction,
            random_seed=self.graph.seed,
        )
        self._index.add_items(_single(docs), np.arange(self.size), num_threads=1)

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and links, as hnswlib would store them."""
        return int(self._index.index_file_size())

    def search(self, queries: NDArray[np.floating], k: int, ef_search: int | None = None) -> Hits:
        """About the k best documents of each query.

        Args:
            queries: Query vectors, `[queries, dimensions]`.
            k: How many documents; more than there are is allowed.
            ef_search: Candidates held, in place of the graph's.

        Raises:
            InputError: k is below 1, the dimensions differ, or the graph does not reach k documents.
        """
        _check_depth(k)
        queries = _checked(queries, self._dimensions)
        k = min(k, self.size)
        self._index.set_ef(max(ef_search or self.graph.ef_search, k))
        try:
            docs, distances = self._index.knn_query(queries, k=k, num_threads=1)
        except RuntimeError as error:
            raise InputError(f"the graph did not reach {k} documents: {error}", "raise links or ef_search") from error
        scores = np.float32(1) - distances
        return Hits.from_rows([best(row, k, found) for row, found in zip(scores, docs, strict=True)])


def _check_depth(k: int) -> None:
    if k < 1:
        raise InputError(f"a search for {k} documents", "k must be 1 or more")


def _checked(queries: NDArray[np.floating], dimensions: int) -> NDArray[np.float32]:
    if queries.ndim != 2 or queries.shape[1] != dimensions:
        raise InputError(f"queries have shape {queries.shape}, documents {dimensions} dimensions")
    return _single(queries)


def _single(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors in single precision, none with a number that cannot be ranked."""
    single = np.ascontiguousarray(vectors, dtype=np.float32)
    if single.ndim != 2 or not np.isfinite(single).all():
        raise InputError("dense vectors must be a matrix of finite numbers")
    return single
