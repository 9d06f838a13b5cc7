"""Every exact engine finds what a full scan finds, ties included; costs are counted, not guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsebench.errors import InputError
from sparsebench.retrieval import index
from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import DenseIndex, HnswGraph, HnswIndex, InvertedIndex
from sparsebench.retrieval.sparse_vectors import CSR, csr

weights = st.sampled_from([0, 0, 0, 1, 2, 0.5])


def matrices(rows: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, st.tuples(st.integers(1, rows), st.just(6)), elements=weights)


def sparse_of(matrix: np.ndarray) -> CSR:
    return csr([(np.flatnonzero(row), row[np.flatnonzero(row)]) for row in matrix], matrix.shape[1])


def scan(scores: np.ndarray, k: int, positive: bool) -> list[int]:
    docs = [doc for doc in range(len(scores)) if scores[doc] > 0 or not positive]
    return sorted(docs, key=lambda doc: (-scores[doc], -doc))[:k]


@given(matrices(12), matrices(4), st.integers(1, 15))
def test_the_inverted_index_is_a_full_scan(docs: np.ndarray, queries: np.ndarray, k: int) -> None:
    hits = InvertedIndex(sparse_of(docs)).search(sparse_of(queries), k)
    for query, scores in enumerate(queries @ docs.T):
        found, values = hits.row(query)
        assert found.tolist() == scan(scores, k, positive=True)
        assert values.tolist() == scores[found].tolist()
    frequency = (docs != 0).sum(axis=0)
    assert hits.touched is not None
    assert hits.touched.tolist() == [int(frequency[row != 0].sum()) for row in queries]


@given(matrices(12), matrices(4), st.integers(1, 15))
def test_dense_search_is_a_full_scan(docs: np.ndarray, queries: np.ndarray, k: int) -> None:
    hits = DenseIndex(docs).search(queries, k)
    for query, scores in enumerate(queries @ docs.T):
        assert hits.row(query)[0].tolist() == scan(scores, k, positive=False)
    assert hits.touched is not None
    assert set(hits.touched.tolist()) == {len(docs)}


@given(matrices(12), matrices(5), st.integers(1, 15))
def test_dense_blocks_do_not_change_the_ranking(docs: np.ndarray, queries: np.ndarray, k: int) -> None:
    whole = DenseIndex(docs).search(queries, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_DOCS_AT_ONCE", 5)
        patch.setattr(index, "_QUERIES_AT_ONCE", 2)
        blocks = DenseIndex(docs).search(queries, k)
    assert blocks.docs.tolist() == whole.docs.tolist()
    assert blocks.starts.tolist() == whole.starts.tolist()


def unit_vectors(rows: int, dimensions: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def overlap(exact: Hits, found: Hits) -> float:
    shared = [len(set(exact.row(q)[0].tolist()) & set(found.row(q)[0].tolist())) for q in range(len(exact))]
    return sum(shared) / len(exact.docs)


def test_hnsw_nears_exact_search_as_its_beam_grows() -> None:
    pytest.importorskip("hnswlib")
    docs, queries = unit_vectors(2000), unit_vectors(50) + 0.1
    exact = DenseIndex(docs).search(queries, 10)
    graph = HnswIndex(docs, HnswGraph(links=8, ef_construction=40))
    recall = [overlap(exact, graph.search(queries, 10, ef_search=ef)) for ef in (10, 40, 2000)]
    assert recall[0] < recall[1] <= recall[2]
    assert recall[2] == pytest.approx(1.0)
    assert graph.search(queries, 10).touched is None
    assert graph.nbytes > docs.nbytes


def test_hnsw_is_the_same_graph_every_time_and_scores_are_inner_products() -> None:
    pytest.importorskip("hnswlib")
    docs, queries = unit_vectors(500), unit_vectors(9)
    first, second = (HnswIndex(docs).search(queries, 5) for _ in range(2))
    assert first.docs.tolist() == second.docs.tolist()
    expected = (queries @ docs.T)[first.query_of, first.docs]
    assert first.scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("engine", [DenseIndex, HnswIndex])
def test_more_documents_than_there_are_may_be_asked_for(engine: type) -> None:
    if engine is HnswIndex:
        pytest.importorskip("hnswlib")
    docs = unit_vectors(3)
    assert engine(docs).search(docs[:1], 10).docs.tolist() == DenseIndex(docs).search(docs[:1], 3).docs.tolist()


def test_bytes_are_those_of_the_arrays() -> None:
    assert DenseIndex(np.zeros((7, 5))).nbytes == 7 * 5 * 4
    docs = sparse_of(np.array([[1, 0, 2], [0, 0, 3]], np.float32))
    assert InvertedIndex(docs).nbytes == 3 * 4 + 3 * 4 + 4 * 4  # weights, document numbers, list starts


def test_wrong_searches_are_errors() -> None:
    docs = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="k must be 1"):
        DenseIndex(docs).search(docs, 0)
    with pytest.raises(InputError, match="dimensions"):
        DenseIndex(docs).search(np.zeros((1, 2)), 1)
    with pytest.raises(InputError, match="terms"):
        InvertedIndex(sparse_of(docs)).search(csr([], 4), 1)
    with pytest.raises(InputError, match="finite"):
        DenseIndex(np.full((1, 2), np.nan))
