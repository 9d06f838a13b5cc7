"""Pseudo-relevance feedback on vectors: a query moves towards the documents that it found first.

Everything works on dense arrays and on sparse matrices alike. A query without hits stays as it is.

Source: Li et al., 2021, "Pseudo Relevance Feedback with Deep Language Models and Dense Retrievers", arXiv 2108.11044.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from sparsebench.errors import InputError
from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.sparse_vectors import CSR


def feedback_mean(hits: Hits, depth: int, documents: int, *, last: bool = False) -> CSR:
    """The matrix that takes document vectors to the mean of each query's feedback documents.

    Args:
        hits: The first search.
        depth: How many documents give feedback.
        documents: How many documents there are.
        last: Take the last documents in place of the first, as negative feedback.

    Returns:
        `float32 [queries, documents]`; rows sum to 1, or to 0 for a query without hits.

    Raises:
        InputError: The depth is below 1.
    """
    if depth < 1:
        raise InputError(f"feedback from {depth} documents", "the depth must be 1 or more")
    counts = hits.counts[hits.query_of]
    place = counts - hits.ranks + 1 if last else hits.ranks
    kept = place <= depth
    share = (1 / np.minimum(counts, depth)).astype(np.float32)
    return sparse.csr_array(
        (share[kept], (hits.query_of[kept], hits.docs[kept])), shape=(len(hits), documents), dtype=np.float32
    )


def average(queries: Any, docs: Any, hits: Hits, depth: int = 3) -> Any:
    """The mean of the query and its first documents, all of equal weight.

    Args:
        queries: Query vectors, `[queries, dimensions]`, dense or sparse.
        docs: Document vectors, `[documents, dimensions]`, of the same kind.
        hits: The first search.
        depth: How many documents give feedback.

    Returns:
        New query vectors, of the kind and shape of `queries`.

    Raises:
        InputError: The depth is below 1.
    """
    found = np.minimum(hits.counts, depth).astype(np.float32)
    mean = feedback_mean(hits, depth, docs.shape[0]) @ docs
    return _scaled(queries, 1 / (1 + found)) + _scaled(mean, found / (1 + found))


def rocchio(
    queries: Any,
    docs: Any,
    hits: Hits,
    depth: int = 5,
    *,
    alpha: float = 0.4,
    beta: float = 0.6,
    gamma: float = 0.0,
    negatives: int = 5,
) -> Any:
    """The query times alpha, plus beta times the mean of its first documents, less gamma times that of its last.

    Args:
        queries: Query vectors, `[queries, dimensions]`, dense or sparse.
        docs: Document vectors, `[documents, dimensions]`, of the same kind.
        hits: The first search.
        depth: How many first documents give feedback.
        alpha: Weight of the query.
        beta: Weight of the feedback.
        gamma: Weight of the negative feedback.
        negatives: How many last documents give negative feedback, if gamma is not 0.

    Returns:
        New query vectors, of the kind and shape of `queries`.

    Raises:
        InputError: A depth is below 1.
    """
    some = hits.counts > 0
    kept = np.where(some, alpha, 1).astype(np.float32)
    moved = _scaled(queries, kept) + beta * (feedback_mean(hits, depth, docs.shape[0]) @ docs)
    if gamma:
        moved = moved - gamma * (feedback_mean(hits, negatives, docs.shape[0], last=True) @ docs)
    return moved


def _scaled(vectors: Any, factors: Any) -> Any:
    """Each row times its factor."""
    if sparse.issparse(vectors):
        return sparse.diags_array(factors, dtype=np.float32).tocsr() @ vectors
    return vectors * factors[:, None]
