"""The one order of documents: score descending, then document descending, in single precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.retrieval.hits import Hits, best, keyed, rank_keys

scores = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0]), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    max_size=60,
)


def by_definition(values: np.ndarray) -> list[int]:
    return sorted(range(len(values)), key=lambda doc: (-float(values[doc]), -doc))


@given(scores, st.integers(1, 70))
def test_best_is_the_head_of_the_full_order(values: list[float], k: int) -> None:
    array = np.array(values, dtype=np.float32)
    docs, kept = best(array, k)
    assert docs.tolist() == by_definition(array)[:k]
    assert kept.tolist() == array[docs].tolist()


@given(scores)
def test_keys_give_documents_and_scores_back(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    docs, kept = keyed(rank_keys(array, np.arange(len(array))))
    assert docs.tolist() == list(range(len(array)))
    assert np.array_equal(kept, array)


def test_the_last_document_of_a_large_corpus_has_a_key() -> None:
    docs, _ = keyed(rank_keys(np.array([1.0], np.float32), np.array([2**31 - 1])))
    assert docs.tolist() == [2**31 - 1]


def test_a_cut_through_a_tie_keeps_the_highest_documents() -> None:
    assert best(np.zeros(9, np.float32), 3)[0].tolist() == [8, 7, 6]


def test_rows_ranks_and_cut() -> None:
    hits = Hits.ranked(np.array([0, 0, 0, 2]), np.array([5, 7, 6, 1]), np.array([1.0, 2.0, 1.0, 3.0]), 3)
    assert hits.counts.tolist() == [3, 0, 1]
    assert hits.row(0)[0].tolist() == [7, 6, 5]
    assert hits.ranks.tolist() == [1, 2, 3, 1]
    assert hits.cut(2).docs.tolist() == [7, 6, 1]
    assert hits.cut(2).counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_score_that_cannot_be_ranked_is_refused(score: float) -> None:
    with pytest.raises(InputError, match="scores"):
        Hits.ranked(np.array([0]), np.array([0]), np.array([score]), 1)
