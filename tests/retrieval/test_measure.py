"""Counts are those of what was searched; recall is of the exact ranking; threads are given back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import DenseIndex, InvertedIndex
from sparsebench.retrieval.measure import dense_sizes, latencies, recall_of_exact, sparse_sizes, threads, tiers
from sparsebench.retrieval.sparse_vectors import keep_largest


def hits(*rows: list[int]) -> Hits:
    return Hits.from_rows([(np.array(row, np.int32), -np.arange(len(row), dtype=np.float32)) for row in rows])


def test_recall_is_the_share_of_the_exact_first_documents() -> None:
    exact = hits([1, 2, 3, 4], [5, 6], [])
    assert recall_of_exact(exact, exact, 3) == 1
    assert recall_of_exact(exact, hits([4, 1, 9], [], [7]), 2) == pytest.approx((1 / 2 + 0) / 2)
    assert recall_of_exact(exact, hits([4, 3, 2, 1], [6], []), 4) == pytest.approx((1 + 1 / 2) / 2)
    assert recall_of_exact(hits([]), hits([]), 10) == 1, "nothing to find, nothing missed"


def vectors() -> tuple[sparse.csr_array, sparse.csr_array]:
    random = np.random.default_rng(0)
    return tuple(  # type: ignore[return-value]
        sparse.csr_array(sparse.random_array((rows, 30), density=0.3, rng=random, format="csr", dtype=np.float32))
        for rows in (50, 7)
    )


def test_sizes_of_pruned_documents_and_of_pruned_queries() -> None:
    docs, queries = vectors()
    fewer, shorter = keep_largest(docs, 3), keep_largest(queries, 2)
    for kept_docs, kept_queries, of in (
        (docs, queries, "documents"),
        (fewer, queries, "documents"),
        (docs, shorter, "queries"),
    ):
        index = InvertedIndex(kept_docs)
        found = index.search(kept_queries, 10)
        sizes = sparse_sizes((docs, queries), (kept_docs, kept_queries), index, found)
        read = sum(int((kept_docs.toarray()[:, term] != 0).sum()) for term in kept_queries.indices)
        whole = sum(int((docs.toarray()[:, term] != 0).sum()) for term in queries.indices)
        assert sizes["flops"] == 2 * read and sizes["flops_dense"] == 2 * whole
        assert sizes["densities"]["postings read"] == read / whole
        assert of in sizes["sparsity_of"]
        pruned, full = (kept_docs, docs) if of == "documents" else (kept_queries, queries)
        assert sizes["sparsity"] == 1 - pruned.nnz / full.nnz
        assert sizes["bytes"] == index.nbytes and sizes["bytes_dense"] == InvertedIndex(docs).nbytes
        assert sizes["postings read a query"] == read / 7


def test_sizes_of_dense_search() -> None:
    docs = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    index = DenseIndex(docs)
    sizes = dense_sizes(docs, index, index.search(docs[:3], 5))
    assert sizes["flops"] == sizes["flops_dense"] == 2 * 20 * 6 * 3
    assert sizes["bytes"] == sizes["bytes_dense"] == tiers(index)["index bytes in memory"] == docs.nbytes
    assert sizes["vectors compared a query"] == 20


def test_each_count_of_threads_has_a_latency_and_threads_are_given_back() -> None:
    docs = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    asked: list[int] = []

    def ask(texts: object) -> None:
        asked.append(torch.get_num_threads())

    try:
        found = latencies(ask, DenseIndex(docs), ["a", "b"], docs[:2], 5)
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), threads(1):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    sides = ("encode_query_ms", "search_query_ms")
    assert set(found) == {f"{side}_{count}" for side in sides for count in ("1_thread", "2_threads")}
    assert all(value > 0 for value in found.values())
    assert asked == [1] * 3 + [2] * 3, "one call that is not counted, then every query"
