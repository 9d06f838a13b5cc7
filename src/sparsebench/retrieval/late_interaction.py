"""Late interaction: texts as sets of token vectors, ranked by Chamfer similarity, over all documents or candidates.

The similarity of a query and a document is the sum over the query's tokens of the largest inner product with any of
the document's tokens.

Source: Khattab and Zaharia, 2020, "ColBERT", arXiv 2004.12832, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.hits import Hits, best, starts_of
from sparsebench.retrieval.index import Index

Floats = NDArray[np.float32]
_TOKENS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """Vectors of the tokens of some texts.

    Attributes:
        vectors: `float32 [tokens, dimensions]`, text after text.
        starts: Text i has the tokens `starts[i]` to `starts[i + 1]`; `int64 [texts + 1]`.
    """

    vectors: Floats
    starts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not (np.diff(self.starts) > 0).all():
            raise InputError("a text has no token vector")

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.floating]]) -> TokenVectors:
        """Vectors of unit length from those of each text, `[tokens, dimensions]` each."""
        vectors = np.concatenate(rows).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return cls(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), starts_of([len(row) for row in rows]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, chosen: slice | NDArray[np.integer]) -> TokenVectors:
        """Some of the texts."""
        numbers = np.arange(len(self))[chosen]
        counts = self.counts[numbers]
        starts = starts_of(counts)
        tokens = np.arange(starts[-1]) + np.repeat(self.starts[numbers] - starts[:-1], counts)
        return TokenVectors(self.vectors[tokens], starts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each text, `int64 [texts]`."""
        return np.diff(self.starts)

    @property
    def dimensions(self) -> int:
        """Dimensions of a vector."""
        return int(self.vectors.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return int(self.vectors.nbytes + self.starts.nbytes)


def chamfer(query: Floats, docs: TokenVectors) -> Floats:
    """The similarity of one query and each document.

    Args:
        query: Its token vectors, `float32 [tokens, dimensions]`.
        docs: The documents.

    Returns:
        `float32 [documents]`.
    """
    scores = np.empty(len(docs), dtype=np.float32)
    first = 0
    while first < len(docs):
        last = int(np.searchsorted(docs.starts, docs.starts[first] + _TOKENS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), len(docs))
        begin, end = docs.starts[first], docs.starts[last]
        products = query @ docs.vectors[begin:end].T
        scores[first:last] = np.maximum.reduceat(products, docs.starts[first:last] - begin, axis=1).sum(axis=0)
        first = last
    return scores


@dataclass(frozen=True, eq=False)
class Staged:
    """Texts in two forms: one vector each, to choose candidates by, and their token vectors, to rank those by.

    Attributes:
        coarse: `float32 [texts, dimensions]`.
        fine: Token vectors of the same texts.
    """

    coarse: Floats
    fine: TokenVectors

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, chosen: slice) -> Staged:
        """Some of the texts."""
        return Staged(self.coarse[chosen], self.fine[chosen])


class ChamferIndex:
    """Ranking by Chamfer similarity; `Hits.touched` counts the documents' token vectors that were compared.

    Args:
        docs: The documents; their coarse form is not looked at when all are candidates.
        candidates: How many documents of the coarse ranking are looked at; all when None.
    """

    def __init__(self, docs: Staged, candidates: int | None = None) -> None:
        from sparsebench.retrieval.index import DenseIndex

        self.size = len(docs)
        self._docs = docs.fine
        self._candidates = candidates
        self.coarse: Index | None = None if candidates is None else DenseIndex(docs.coarse)

    @property
    def nbytes(self) -> int:
        """Bytes of token vectors and of the coarse vectors."""
        return self._docs.nbytes + (0 if self.coarse is None else self.coarse.nbytes)

    def search(self, queries: Staged, k: int) -> Hits:
        """The k best documents of each query among its candidates.

        Args:
            queries: The queries.
            k: How many documents; more than there are, or than candidates, is allowed.

        Raises:
            InputError: k is below 1, or the dimensions differ.
        """
        if k < 1:
            raise InputError(f"a search for {k} documents", "k must be 1 or more")
        if queries.fine.dimensions != self._docs.dimensions:
            raise InputError(f"queries have {queries.fine.dimensions} dimensions, documents {self._docs.dimensions}")
        coarse = None
        if self.coarse is not None and self._candidates is not None:
            coarse = self.coarse.search(queries.coarse, self._candidates)
        rows, touched = [], []
        for number in range(len(queries)):
            query = queries.fine.vectors[queries.fine.starts[number] : queries.fine.starts[number + 1]]
            chosen = None if coarse is None else np.sort(coarse.row(number)[0])
            docs = self._docs if chosen is None else self._docs[chosen]
            rows.append(best(chamfer(query, docs), k, chosen))
            touched.append(len(docs.vectors))
        return Hits.from_rows(rows, touched)


def chamfer_sizes(docs: Staged, queries: Staged, index: ChamferIndex, hits: Hits) -> dict[str, Any]:
    """Sizes and counted work of a search; the dense form compares every token of every document with every query's."""
    touched = np.zeros(len(hits), np.int64) if hits.touched is None else hits.touched
    per_pair = 2.0 * docs.fine.dimensions
    flops = per_pair * float(queries.fine.counts @ touched)
    if index.coarse is not None:
        flops += 2.0 * len(queries) * docs.coarse.size
    return {
        "flops": flops,
        "flops_dense": per_pair * float(queries.fine.counts.sum()) * len(docs.fine.vectors),
        "bytes": float(index.nbytes),
        "bytes_dense": float(docs.fine.nbytes),
        "index bytes in memory": float(index.nbytes),
        "token vectors compared a query": float(touched.mean()) if len(hits) else 0.0,
    }
