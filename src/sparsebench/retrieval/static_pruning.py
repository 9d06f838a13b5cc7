"""Static index pruning: which postings an index keeps when it may keep a share of them.

All ways of pruning keep exactly the same number of postings at the same sparsity, so that rows at one budget differ in
the choice alone. Each is an order of the postings; the first are kept, so what is kept at a higher sparsity is part of
what is kept at a lower one. Ties go by document, then by term.

Source: Lassance et al., 2023, "A Static Pruning Study on Sparse Neural Retrievers", arXiv 2304.12702.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparsebench.errors import InputError
from sparsebench.retrieval.sparse_vectors import CSR

_ROUNDING = 1e-6
"""A share that was computed from a whole number of postings gives that number back."""


def prune_documents(matrix: CSR, sparsity: float) -> CSR:
    """Document-centric: as many of its largest weights for every document as possible.

    Args:
        matrix: Document vectors, `float32 [documents, terms]`.
        sparsity: Share of the postings to leave out.

    Raises:
        InputError: The sparsity is below 0, or 1 or more.
    """
    rows = _rows(matrix)
    return _kept(matrix, sparsity, (-np.abs(matrix.data), _places(rows, matrix)))


def prune_terms(matrix: CSR, sparsity: float) -> CSR:
    """Term-centric: every posting list is cut at one length, after its largest weights; arguments as `prune_documents`.

    Lists shorter than that stay whole: what goes are the tails of the longest lists, which cost a search most.
    """
    return _kept(matrix, sparsity, (-np.abs(matrix.data), _places(matrix.indices, matrix)))


def prune_postings(matrix: CSR, sparsity: float) -> CSR:
    """Agnostic: the largest weights wherever they are, all above a quantile; arguments as `prune_documents`."""
    return _kept(matrix, sparsity, (-np.abs(matrix.data),))


def prune_random(matrix: CSR, sparsity: float, seed: int) -> CSR:
    """Postings drawn without regard to their weights: what a sparsity costs by itself."""
    return _kept(matrix, sparsity, (np.random.default_rng(seed).random(matrix.nnz),))


def _rows(matrix: CSR) -> NDArray[np.int64]:
    """The row of each stored weight."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _places(groups: NDArray[np.integer], matrix: CSR) -> NDArray[np.int64]:
    """The place of each weight among those of its group, the largest first, from 0."""
    order = np.lexsort((-np.abs(matrix.data), groups))
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    places = np.empty(matrix.nnz, dtype=np.int64)
    places[order] = np.arange(matrix.nnz) - np.repeat(starts, sizes)
    return places


def _kept(matrix: CSR, sparsity: float, keys: tuple[NDArray[np.number], ...]) -> CSR:
    """The matrix without the last share of its weights, in the order of some keys, the last key first."""
    if not 0 <= sparsity < 1:
        raise InputError(f"static pruning at a sparsity of {sparsity}", "it must be at least 0 and below 1")
    count = matrix.nnz - int(sparsity * matrix.nnz + _ROUNDING)
    kept = np.zeros(matrix.nnz, dtype=bool)
    kept[np.lexsort(keys)[:count]] = True
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)
