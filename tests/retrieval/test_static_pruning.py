"""Static pruning keeps exactly what it may, nested, and what its rule says; quantised weights search as they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from sparsebench.errors import InputError
from sparsebench.retrieval.index import InvertedIndex
from sparsebench.retrieval.sparse_vectors import CSR, keep_largest, nonzeros, postings_bytes, quantise
from sparsebench.retrieval.static_pruning import prune_documents, prune_postings, prune_random, prune_terms

RULES = {
    "document": prune_documents,
    "term": prune_terms,
    "quantile": prune_postings,
    "random": lambda matrix, sparsity: prune_random(matrix, sparsity, seed=3),
}


def vectors(seed: int, documents: int = 40, terms: int = 25, density: float = 0.4) -> CSR:
    """Distinct positive weights, so that no rule has a choice."""
    random = np.random.default_rng(seed)
    matrix = sparse.random_array((documents, terms), density=density, rng=random, format="csr", dtype=np.float32)
    matrix.data = random.permutation(np.arange(1, matrix.nnz + 1)).astype(np.float32)
    return sparse.csr_array(matrix)


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 20), sparsities=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_a_share_goes_and_what_stays_is_nested(rule: str, seed: int, sparsities: tuple[float, float]) -> None:
    matrix = vectors(seed)
    less, more = (RULES[rule](matrix, sparsity) for sparsity in sorted(sparsities))
    for kept, sparsity in ((less, min(sparsities)), (more, max(sparsities))):
        assert kept.nnz == matrix.nnz - int(sparsity * matrix.nnz + 1e-6)
        assert np.all((kept.toarray() == matrix.toarray()) | (kept.toarray() == 0))
    assert not np.any((more.toarray() != 0) & (less.toarray() == 0))


@given(seed=st.integers(0, 20), budget=st.integers(1, 12))
def test_pruning_by_document_is_a_term_budget_where_that_fits(seed: int, budget: int) -> None:
    matrix = vectors(seed)
    kept = keep_largest(matrix, budget)
    pruned = prune_documents(matrix, (matrix.nnz - kept.nnz) / matrix.nnz)
    assert np.array_equal(pruned.toarray(), kept.toarray())


@given(seed=st.integers(0, 20), sparsity=st.floats(0, 0.99))
def test_pruning_by_term_is_pruning_by_document_turned_round(seed: int, sparsity: float) -> None:
    matrix = vectors(seed)
    turned = prune_documents(sparse.csr_array(matrix.T.tocsr()), sparsity).T
    assert np.array_equal(prune_terms(matrix, sparsity).toarray(), turned.toarray())


def test_pruning_by_term_shortens_the_longest_lists_alone() -> None:
    matrix = vectors(0, documents=200)
    lengths = np.bincount(prune_terms(matrix, 0.5).indices, minlength=25)
    assert lengths.max() - lengths.min() <= 1, "lists of like length before are all cut at one length"


@given(seed=st.integers(0, 20), sparsity=st.floats(0, 0.99))
def test_the_quantile_rule_is_one_threshold(seed: int, sparsity: float) -> None:
    matrix = vectors(seed)
    kept = prune_postings(matrix, sparsity)
    assert np.array_equal(kept.toarray(), np.where(matrix.toarray() >= kept.data.min(), matrix.toarray(), 0))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0])
def test_a_share_that_is_none_is_an_error(sparsity: float) -> None:
    with pytest.raises(InputError, match="sparsity"):
        prune_documents(vectors(0), sparsity)


@given(seed=st.integers(0, 20), bits=st.integers(1, 16))
def test_quantised_weights_are_within_half_a_step_and_never_vanish(seed: int, bits: int) -> None:
    matrix = vectors(seed)
    whole, scale = quantise(matrix, bits)
    assert whole.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert whole.nnz == matrix.nnz and whole.data.min() >= 1 and whole.data.max() == 2**bits - 1
    error = np.abs(whole.data * scale - matrix.data)
    assert np.all((error <= scale / 2 * (1 + 1e-6)) | (whole.data == 1))


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_an_index_of_whole_numbers_scores_what_they_stand_for(bits: int) -> None:
    matrix, queries = vectors(1), vectors(2, documents=5)
    whole, scale = quantise(matrix, bits)
    hits = InvertedIndex(whole, scale).search(queries, 40)
    expected = queries.toarray() @ (whole.toarray() * scale).T
    assert hits.scores == pytest.approx(expected[hits.query_of, hits.docs], rel=1e-5)
    assert InvertedIndex(whole, scale).nbytes == postings_bytes(whole) < postings_bytes(matrix)


def test_bits_out_of_range_and_negative_weights_are_errors() -> None:
    with pytest.raises(InputError, match="17 bits"):
        quantise(vectors(0), 17)
    negative = vectors(0)
    negative.data[0] = -1
    with pytest.raises(InputError, match="negative"):
        quantise(negative, 8)


def test_bytes_of_postings_are_those_of_the_index() -> None:
    matrix = vectors(4)
    assert postings_bytes(matrix) == InvertedIndex(matrix).nbytes
    assert nonzeros(matrix).sum() == matrix.nnz
