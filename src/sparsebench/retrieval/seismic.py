"""Seismic: approximate search over sparse vectors, in posting lists cut into blocks with summaries.

Source: Bruch et al., 2024, "Efficient Inverted Indexes for Approximate Retrieval over Learned Sparse Representations",
arXiv 2404.18812; the implementation is its authors'.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.errors import InputError, MissingError
from sparsebench.retrieval.hits import Hits, best
from sparsebench.retrieval.sparse_vectors import CSR

DOCUMENTS_AT_ONCE = 50_000
"""Documents that are handed over at a time: what is copied for that is as large."""


@dataclass(frozen=True)
class Blocks:
    """How posting lists are cut into blocks and searched.

    Attributes:
        postings: Postings of a list, on average, that are kept.
        centroid_fraction: Blocks of a list, as a share of its postings.
        summary_energy: Share of a block's weight that its summary keeps.
        query_cut: Largest terms of a query whose lists are read; all when None.
        heap_factor: A block is skipped when its summary promises less than the worst hit so far over this factor; less
            than 1 visits fewer blocks.
    """

    postings: int = 3500
    centroid_fraction: float = 0.1
    summary_energy: float = 0.4
    query_cut: int | None = None
    heap_factor: float = 0.9


class SeismicIndex:
    """Approximate search over sparse vectors.

    Building draws centroids at random and takes no seed: two builds differ a little. Weights are stored in half
    precision. Seismic does not tell what it read, so `Hits.touched` is None.

    Args:
        docs: Document vectors, `float32 [documents, terms]`.
        blocks: How the index is built and searched.

    Raises:
        MissingError: pyseismic-lsr is not installed.
    """

    def __init__(self, docs: CSR, blocks: Blocks | None = None) -> None:
        try:
            import seismic
        except ImportError as error:
            raise MissingError("Seismic needs pyseismic-lsr", "pip install 'sparsebench[seismic]'") from error
        self.blocks = blocks or Blocks()
        self.size, self._terms = docs.shape
        if not docs.nnz:
            raise InputError("Seismic: no document has a term")
        if not docs.has_sorted_indices:
            docs = docs.sorted_indices()
        self._string = seismic.get_seismic_string()
        data = seismic.SeismicDataset(self._terms)
        for first in range(0, self.size, DOCUMENTS_AT_ONCE):
            ends = docs.indptr[first : first + DOCUMENTS_AT_ONCE + 1].astype(np.int64)
            data.add_documents_by_id(
                [str(first + number) for number in range(len(ends) - 1)],
                docs.indices[ends[0] : ends[-1]].astype(np.int64),
                docs.data[ends[0] : ends[-1]].astype(np.float32),
                ends - ends[0],
            )
        with _muted():
            self._index: Any = seismic.SeismicIndex.build_from_dataset(
                data,
                n_postings=self.blocks.postings,
                centroid_fraction=self.blocks.centroid_fraction,
                summary_energy=self.blocks.summary_energy,
            )
            self._bytes = self._stored_bytes()

    @property
    def nbytes(self) -> int:
        """Bytes of the index as Seismic stores it."""
        return self._bytes

    def search(self, queries: CSR, k: int) -> Hits:
        """About the k best documents of each query, query after query.

        Args:
            queries: Query vectors, `float32 [queries, terms]`.
            k: How many documents; more than there are is allowed.

        Raises:
            InputError: k is below 1, or the vocabularies differ in size.
        """
        if k < 1:
            raise InputError(f"a search for {k} documents", "k must be 1 or more")
        if queries.shape[1] != self._terms:
            raise InputError(f"queries have {queries.shape[1]} terms, the index {self._terms}")
        rows = []
        for begin, end in pairwise(queries.indptr.tolist()):
            terms = queries.indices[begin:end].astype(self._string)
            weights = queries.data[begin:end].astype(np.float32)
            cut = self.blocks.query_cut or max(1, len(terms))
            found = self._index.search("", terms, weights, min(k, self.size), cut, self.blocks.heap_factor)
            docs = np.fromiter((int(doc) for _, _, doc in found), np.int64, len(found))
            scores = np.fromiter((score for _, score, _ in found), np.float32, len(found))
            rows.append(best(scores, k, docs))
        return Hits.from_rows(rows)

    def _stored_bytes(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            self._index.save(str(Path(folder) / "index"))
            return sum(path.stat().st_size for path in Path(folder).iterdir())


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing reaches the terminal: Seismic prints past Python, so the streams themselves are pointed elsewhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
