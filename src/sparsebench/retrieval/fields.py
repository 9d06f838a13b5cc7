"""BM25 over several fields: a document's score is the weighted sum of its fields' scores.

As in Lucene, a field's average length and its document frequencies are those of the documents that have the field.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sparsebench.errors import InputError
from sparsebench.retrieval.bm25 import BM25, BM25Index
from sparsebench.retrieval.sparse_vectors import CSR, compact


class FieldsIndex:
    """Documents indexed field by field.

    Args:
        config: The configuration, the same for each field.
        fields: The texts of each field, a document's at its place, with the field's weight; empty where it has none.

    Raises:
        InputError: No document has a term in any field.
    """

    def __init__(self, config: BM25, fields: Sequence[tuple[Sequence[str], float]]) -> None:
        self._indexes: list[tuple[BM25Index, float]] = []
        parts = []
        for texts, weight in fields:
            places = np.flatnonzero([bool(text.strip()) for text in texts])
            try:
                index = config.index([texts[int(place)] for place in places])
            except InputError:
                continue  # a field that no document has a term in, as titles in many collections
            self._indexes.append((index, weight))
            parts.append(_spread(index.weights, places, len(texts)))
        if not parts:
            raise InputError("BM25: no document has a term in any field", "is the analyser right for this language?")
        self.weights: CSR = compact(sparse.csr_array(sparse.hstack(parts, format="csr")))

    def encode_queries(self, queries: Sequence[str]) -> CSR:
        """How often each field's terms come in each query, times the field's weight, `float32 [queries, terms]`."""
        parts = [index.encode_queries(queries) * np.float32(weight) for index, weight in self._indexes]
        return compact(sparse.csr_array(sparse.hstack(parts, format="csr")))


def _spread(weights: CSR, places: np.ndarray, count: int) -> CSR:
    """Rows at their places among `count` documents, the others empty."""
    lengths = np.zeros(count, dtype=np.int64)
    lengths[places] = np.diff(weights.indptr)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_array((weights.data, weights.indices, starts), shape=(count, weights.shape[1]))
