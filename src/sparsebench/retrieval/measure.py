"""What searching costs, and what an approximate search misses: sizes, counted work, latency, recall of exact search.

Counts come from what was searched; times are measured, and only here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import Index, TieredIndex
from sparsebench.retrieval.sparse_vectors import CSR, flops, postings_bytes

TIMED_QUERIES = 32
TIMED_SECONDS = 2.0
"""Latency is the median over so many queries, or over as many as fit in this time, three at least."""


def recall_of_exact(exact: Hits, found: Hits, k: int) -> float:
    """The share of the exact first k that is among the first k found; the mean over queries that have an exact hit."""
    shares = recalls_of_exact(exact, found, k)
    return float(np.nanmean(shares)) if not np.isnan(shares).all() else 1.0


def recalls_of_exact(exact: Hits, found: Hits, k: int) -> NDArray[np.float64]:
    """The same of each query, `[queries]`; NaN where there is no exact hit."""
    shares = np.full(len(exact), np.nan)
    for query in range(len(exact)):
        wanted = exact.row(query)[0][:k]
        if len(wanted):
            shares[query] = np.isin(wanted, found.row(query)[0][:k]).mean()
    return shares


def sparse_sizes(full: tuple[CSR, CSR], kept: tuple[CSR, CSR], index: Index, hits: Hits) -> dict[str, Any]:
    """Sizes and counted work of a search over sparse vectors.

    Args:
        full: Document and query vectors before anything was left out.
        kept: Document and query vectors as they were indexed and asked.
        index: What was searched.
        hits: What it found, with the postings that it read.

    Returns:
        Fields of a record by name; the sparsity is that of the documents' terms, or that of the queries' where only
        those were pruned. `flops` counts a multiplication and an addition for each posting; None where an engine does
        not say what it read.
    """
    (docs, queries), (kept_docs, kept_queries) = full, kept
    dense = _postings_read(docs, queries)
    touched = None if hits.touched is None else int(hits.touched.sum())
    pruned = {
        "terms of the documents' vectors": 1 - kept_docs.nnz / max(1, docs.nnz),
        "terms of the queries' vectors": 1 - kept_queries.nnz / max(1, queries.nnz),
    }
    of = next((name for name, share in pruned.items() if share), next(iter(pruned)))
    return {
        "sparsity": pruned[of],
        "sparsity_of": of,
        "densities": {} if touched is None else {"postings read": touched / max(1, dense)},
        "flops": None if touched is None else 2.0 * touched,
        "flops_dense": 2.0 * dense,
        "bytes": float(index.nbytes),
        "bytes_dense": float(postings_bytes(docs)),
        "terms a document": kept_docs.nnz / max(1, kept_docs.shape[0]),
        "terms a query": kept_queries.nnz / max(1, kept_queries.shape[0]),
        "FLOPS measure": flops(kept_docs, kept_queries),
        **tiers(index),
        **({} if touched is None else {"postings read a query": touched / max(1, len(hits))}),
    }


def dense_sizes(documents: Any, index: Index, hits: Hits) -> dict[str, Any]:
    """Sizes and counted work of a search over dense vectors; the dense form compares every document."""
    count, dimensions = documents.shape
    dense = 2.0 * count * dimensions * len(hits)
    sizes = {
        "flops": None if hits.touched is None else 2.0 * int(hits.touched.sum()) * dimensions,
        "flops_dense": dense,
        "bytes": float(index.nbytes),
        "bytes_dense": 4.0 * count * dimensions,
        **tiers(index),
    }
    if hits.touched is not None:
        sizes["vectors compared a query"] = float(hits.touched.mean()) if len(hits) else 0.0
    return sizes


def tiers(index: Index) -> dict[str, float]:
    """Bytes of an index by where they lie."""
    sizes = {"index bytes in memory": float(index.nbytes)}
    if isinstance(index, TieredIndex):
        sizes["index bytes on disk"] = float(index.disk_bytes)
    return sizes


def latencies(
    ask: Callable[[Sequence[str]], Any] | None, index: Index, texts: Sequence[str], queries: Any, depth: int
) -> dict[str, float]:
    """Latency of single queries, in milliseconds, at one thread and at all that are in use.

    Args:
        ask: Encodes some queries; None: only searching is timed.
        index: What is searched.
        texts: The queries.
        queries: Their vectors, `[queries, ...]`.
        depth: How many documents each is asked for.
    """
    import torch

    chosen = np.unique(np.linspace(0, len(texts) - 1, min(TIMED_QUERIES, len(texts))).astype(int)).tolist()
    measured: dict[str, float] = {}
    for count in sorted({1, torch.get_num_threads()}):
        name = "1_thread" if count == 1 else f"{count}_threads"
        with threads(count):
            if ask is not None:
                measured[f"encode_query_ms_{name}"] = 1e3 * _median([_call(ask, texts[q : q + 1]) for q in chosen])
            searches = [_call(index.search, queries[q : q + 1], depth) for q in chosen]
            measured[f"search_query_ms_{name}"] = 1e3 * _median(searches)
    return measured


@contextmanager
def threads(count: int) -> Iterator[None]:
    """At most so many threads in torch and in NumPy's matrix products, for as long as the context lasts."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _median(calls: Sequence[Callable[[], Any]]) -> float:
    """Median seconds of the calls, after one that is not counted."""
    calls[0]()
    taken: list[float] = []
    for call in calls:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        if sum(taken) > TIMED_SECONDS and len(taken) >= 3:
            break
    return median(taken)


def _postings_read(docs: CSR, queries: CSR) -> int:
    """Postings that an inverted index of all vectors would read."""
    lengths = np.bincount(docs.indices, minlength=docs.shape[1])
    return int(lengths[queries.indices].sum())
