"""Feedback moves queries as its formulas say, dense and sparse alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from sparsebench.errors import InputError
from sparsebench.retrieval.feedback import average, feedback_mean, rocchio
from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import DenseIndex

RNG = np.random.default_rng(0)
DOCS = RNG.random((8, 4), dtype=np.float32)
QUERIES = RNG.random((3, 4), dtype=np.float32)
# Five hits, two hits, none.
HITS = Hits.ranked(np.array([0] * 5 + [1] * 2), np.array([4, 2, 7, 0, 1, 3, 6]), np.array([5.0, 4, 3, 2, 1, 2, 1]), 3)


def test_average_is_the_mean_of_the_query_and_its_first_documents() -> None:
    moved = average(QUERIES, DOCS, HITS, depth=3)
    assert moved[0] == pytest.approx((QUERIES[0] + DOCS[4] + DOCS[2] + DOCS[7]) / 4)
    assert moved[1] == pytest.approx((QUERIES[1] + DOCS[3] + DOCS[6]) / 3)
    assert moved[2] == pytest.approx(QUERIES[2])


def test_rocchio_is_its_formula() -> None:
    moved = rocchio(QUERIES, DOCS, HITS, depth=2, alpha=0.4, beta=0.6, gamma=0.1, negatives=2)
    positive, negative = (DOCS[4] + DOCS[2]) / 2, (DOCS[0] + DOCS[1]) / 2
    assert moved[0] == pytest.approx(0.4 * QUERIES[0] + 0.6 * positive - 0.1 * negative)
    assert moved[2] == pytest.approx(QUERIES[2])


def test_no_feedback_weight_leaves_the_query() -> None:
    assert rocchio(QUERIES, DOCS, HITS, alpha=1.0, beta=0.0) == pytest.approx(QUERIES)


@pytest.mark.parametrize("method", [average, rocchio])
def test_sparse_vectors_move_as_dense_ones_do(method: object) -> None:
    moved = method(sparse.csr_array(QUERIES), sparse.csr_array(DOCS), HITS, 3)  # type: ignore[operator]
    assert sparse.issparse(moved)
    assert moved.dtype == np.float32
    assert moved.toarray() == pytest.approx(method(QUERIES, DOCS, HITS, 3))  # type: ignore[operator]


def test_feedback_rows_sum_to_one_or_nothing() -> None:
    for last in (False, True):
        assert feedback_mean(HITS, 3, len(DOCS), last=last).sum(axis=1) == pytest.approx([1, 1, 0])
    assert np.flatnonzero(feedback_mean(HITS, 2, len(DOCS), last=True).toarray()[0]).tolist() == [0, 1]


def test_feedback_brings_the_query_nearer_to_what_it_found() -> None:
    hits = DenseIndex(DOCS).search(QUERIES, 3)
    moved = average(QUERIES, DOCS, hits, depth=3)
    centre = feedback_mean(hits, 3, len(DOCS)) @ DOCS
    assert np.all(np.linalg.norm(moved - centre, axis=1) < np.linalg.norm(QUERIES - centre, axis=1))


def test_a_depth_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="depth"):
        rocchio(QUERIES, DOCS, HITS, depth=0)
