"""Sparse vectors in compressed rows: term budgets, non-zeros, and what scoring with them costs.

A matrix is a `scipy.sparse.csr_array`, `float32 [vectors, terms]`, without stored zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparsebench.errors import InputError

CSR: TypeAlias = sparse.csr_array


def csr(rows: Sequence[tuple[NDArray[np.integer], NDArray[np.floating]]], terms: int) -> CSR:
    """A matrix from the terms and weights of each vector.

    Args:
        rows: Term numbers and weights of each vector, in any order; a repeated term's weights are added.
        terms: Size of the vocabulary.

    Returns:
        `float32 [len(rows), terms]`, terms ascending in each row, zeros left out.

    Raises:
        InputError: A term number is outside the vocabulary, or a weight is not a finite number.
    """
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in rows], dtype=np.int64)])
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in rows)]).astype(np.int64)
    weights = np.concatenate([np.empty(0, np.float32), *(weights for _, weights in rows)]).astype(np.float32)
    if len(ids) and not (0 <= ids.min() and ids.max() < terms):
        raise InputError(f"a sparse vector has term {ids.max()} or {ids.min()} in a vocabulary of {terms}")
    if not np.isfinite(weights).all():
        raise InputError("a sparse vector has weights that are not finite numbers")
    matrix = sparse.csr_array((weights, ids, starts), shape=(len(rows), terms))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return compact(matrix)


def compact(matrix: CSR) -> CSR:
    """The same matrix with 32-bit places wherever they suffice, so that its bytes are those that it needs."""
    places = np.int32 if max(matrix.nnz, *matrix.shape) < 2**31 else np.int64
    parts = (matrix.data, matrix.indices.astype(places, copy=False), matrix.indptr.astype(places, copy=False))
    return sparse.csr_array(parts, shape=matrix.shape)


def nonzeros(matrix: CSR) -> NDArray[np.int64]:
    """Non-zero terms of each vector, `int64 [vectors]`."""
    counts: NDArray[np.int64] = np.diff(matrix.indptr).astype(np.int64)
    return counts


def keep_largest(matrix: CSR, budget: int) -> CSR:
    """Each vector's `budget` largest weights by magnitude; among equal ones the lower term number stays.

    Raises:
        InputError: The budget is negative.
    """
    return _keep(matrix, budget, priority=-np.abs(matrix.data))


def keep_random(matrix: CSR, budget: int, seed: int) -> CSR:
    """`budget` terms of each vector, drawn without regard to their weights: what a term budget costs by itself.

    Every term has one priority for a seed, so the terms kept under a smaller budget are among those of a larger one.

    Raises:
        InputError: The budget is negative.
    """
    return _keep(matrix, budget, priority=np.random.default_rng(seed).random(matrix.nnz))


def quantise(matrix: CSR, bits: int) -> tuple[CSR, float]:
    """Weights as whole numbers of some bits: uniform steps from 0 to the largest weight of all.

    A weight that is there stays there: the least stored number is 1. With one bit all weights are equal.

    Args:
        matrix: Weights, none negative, `float32 [vectors, terms]`.
        bits: Bits of a stored weight, 1 to 16.

    Returns:
        Whole numbers, `uint8` up to 8 bits and `uint16` beyond, and what one of them is worth.

    Raises:
        InputError: A weight is negative, or bits are not 1 to 16.

    Source: linear quantisation of impacts, Mallia et al., 2021, arXiv 2104.12016, section 3.
    """
    if not 1 <= bits <= 16:
        raise InputError(f"weights of {bits} bits", "1 to 16 are possible")
    if matrix.nnz and matrix.data.min() < 0:
        raise InputError("impact quantisation needs weights that are not negative")
    levels = 2**bits - 1
    scale = float(matrix.data.max()) / levels if matrix.nnz else 1.0
    whole = np.clip(np.rint(matrix.data.astype(np.float64) / scale), 1, levels)
    data = whole.astype(np.uint8 if bits <= 8 else np.uint16)
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape), scale


def postings_bytes(matrix: CSR) -> int:
    """Bytes of an inverted index of a matrix: weights, document numbers, and where each term's list starts."""
    place = 4 if max(matrix.nnz, *matrix.shape) < 2**31 else 8
    return int(matrix.nnz * (matrix.data.itemsize + place) + (matrix.shape[1] + 1) * place)


def activation_rate(matrix: CSR) -> NDArray[np.float64]:
    """The share of vectors in which each term is non-zero, `float64 [terms]`."""
    frequency: NDArray[np.int64] = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return frequency / max(int(matrix.shape[0]), 1)


def flops(docs: CSR, queries: CSR) -> float:
    """Expected multiplications to score one document for one query: sum over terms of p_document x p_query.

    Both matrices must be without stored zeros. Source: SPLADE, the FLOPS measure; Paria et al., 2020, section 4.
    """
    return float(activation_rate(docs) @ activation_rate(queries))


def idf(docs: CSR) -> NDArray[np.float32]:
    """Inverse document frequency of each term, log(1 + (N - df + 0.5) / (df + 0.5)), `float32 [terms]`."""
    frequency: NDArray[np.int64] = np.bincount(docs.indices, minlength=docs.shape[1])
    return np.log1p((int(docs.shape[0]) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)


def _keep(matrix: CSR, budget: int, priority: NDArray[np.floating]) -> CSR:
    """Each row's `budget` entries of lowest priority value; of equal ones, those that come first."""
    if budget < 0:
        raise InputError(f"a term budget of {budget} is negative")
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, priority, rows))
    place = np.empty(matrix.nnz, dtype=np.int64)
    place[order] = np.arange(matrix.nnz)
    kept = place - matrix.indptr[rows] < budget
    counts = np.minimum(np.diff(matrix.indptr), budget)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)
