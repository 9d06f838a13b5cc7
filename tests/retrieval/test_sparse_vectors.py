"""Term budgets, and the FLOPS measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsebench.errors import InputError
from sparsebench.retrieval.sparse_vectors import CSR, csr, flops, idf, keep_largest, keep_random, nonzeros

dense = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 2, 0.5, -2])
)


def sparse_of(matrix: np.ndarray) -> CSR:
    return csr([(np.flatnonzero(row), row[np.flatnonzero(row)]) for row in matrix], matrix.shape[1])


@given(dense, st.integers(0, 10))
def test_the_largest_terms_stay_and_nothing_else_changes(matrix: np.ndarray, budget: int) -> None:
    kept = keep_largest(sparse_of(matrix), budget).toarray()
    for row, pruned in zip(matrix, kept, strict=True):
        order = sorted(np.flatnonzero(row), key=lambda term: (-abs(row[term]), term))[:budget]
        expected = np.zeros_like(row)
        expected[order] = row[order]
        assert np.array_equal(pruned, expected)


@given(dense, st.integers(0, 10), st.integers(0, 3))
def test_random_terms_are_nested_and_fill_the_budget(matrix: np.ndarray, budget: int, seed: int) -> None:
    vectors = sparse_of(matrix)
    fewer, more = keep_random(vectors, budget, seed), keep_random(vectors, budget + 1, seed)
    assert nonzeros(fewer).tolist() == np.minimum(nonzeros(vectors), budget).tolist()
    assert not np.any((fewer.toarray() != 0) & (more.toarray() == 0))
    assert np.all((fewer.toarray() == matrix) | (fewer.toarray() == 0))


def test_random_terms_depend_on_the_seed_and_not_on_the_weights() -> None:
    ones = sparse_of(np.ones((20, 50), np.float32))
    twos = sparse_of(np.arange(1, 1001, dtype=np.float32).reshape(20, 50))
    first = keep_random(ones, 10, seed=0)
    assert np.array_equal(first.indices, keep_random(twos, 10, seed=0).indices)
    assert not np.array_equal(first.indices, keep_random(ones, 10, seed=1).indices)
    share = np.bincount(first.indices, minlength=50)[:25].sum() / first.nnz
    assert 0.35 < share < 0.65


def test_a_full_budget_changes_nothing() -> None:
    vectors = sparse_of(np.random.default_rng(0).random((5, 30), dtype=np.float32))
    for kept in (keep_largest(vectors, 30), keep_random(vectors, 30, 0)):
        assert np.array_equal(kept.toarray(), vectors.toarray())


def test_flops_are_expected_products() -> None:
    docs = sparse_of(np.array([[1, 0, 2], [1, 1, 0]], np.float32))
    queries = sparse_of(np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [5, 0, 0]], np.float32))
    assert flops(docs, queries) == pytest.approx(1 * 0.75 + 0.5 * 0 + 0.5 * 0.25)


@given(dense, dense)
def test_flops_are_the_mean_number_of_shared_terms(docs: np.ndarray, queries: np.ndarray) -> None:
    terms = min(docs.shape[1], queries.shape[1])
    docs, queries = docs[:, :terms], queries[:, :terms]
    shared = ((docs != 0).astype(int) @ (queries != 0).astype(int).T).mean()
    assert flops(sparse_of(docs), sparse_of(queries)) == pytest.approx(shared)


def test_idf_is_lucenes() -> None:
    docs = sparse_of(np.array([[1, 0, 1], [1, 0, 0]], np.float32))
    assert idf(docs) == pytest.approx(np.log([1 + 0.5 / 2.5, 1 + 2.5 / 0.5, 1 + 1.5 / 1.5]))


def test_rows_may_be_unordered_repeated_or_empty() -> None:
    matrix = csr([(np.array([4, 1, 4]), np.array([1.0, 2.0, 3.0])), (np.array([], int), np.array([]))], 5)
    assert matrix.toarray().tolist() == [[0, 2, 0, 0, 4], [0, 0, 0, 0, 0]]
    assert csr([], 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("term", "weight", "message"), [(5, 1.0, "vocabulary of 5"), (-1, 1.0, "vocabulary"), (0, np.nan, "finite")]
)
def test_wrong_vectors_are_errors(term: int, weight: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        csr([(np.array([term]), np.array([weight]))], 5)


def test_a_negative_budget_is_an_error() -> None:
    with pytest.raises(InputError, match="negative"):
        keep_largest(csr([], 5), -1)
