"""Codes choose, full vectors decide: all candidates are the exact ranking, fewer cost less and find less."""

from __future__ import annotations

import numpy as np
import pytest

from sparsebench.errors import InputError
from sparsebench.retrieval.index import DenseIndex, TieredIndex
from sparsebench.retrieval.measure import recall_of_exact, tiers
from sparsebench.retrieval.two_tiers import PAGE, ProductQuantiser, TwoTierIndex


def vectors(count: int, dimensions: int = 32, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, dimensions))
    made = centres[random.integers(20, size=count)] + 0.5 * random.normal(size=(count, dimensions))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def test_all_candidates_are_the_exact_ranking() -> None:
    docs, queries = vectors(500), vectors(9, seed=1)
    exact = DenseIndex(docs).search(queries, 50)
    found = TwoTierIndex(docs, None, parts=8).search(queries, 50)
    assert found.docs.tolist() == exact.docs.tolist()
    assert found.scores == pytest.approx(exact.scores, abs=1e-6)
    assert found.touched is not None and set(found.touched.tolist()) == {500}


def test_more_candidates_find_more_and_what_is_found_is_scored_exactly() -> None:
    docs, queries = vectors(1000), vectors(30, seed=1)
    exact = DenseIndex(docs).search(queries, 10)
    recall = []
    for candidates in (10, 40, 1000):
        index = TwoTierIndex(docs, candidates, parts=4, bits=4)
        found = index.search(queries, 10)
        assert found.scores == pytest.approx((queries @ docs.T)[found.query_of, found.docs], abs=1e-6)
        recall.append(recall_of_exact(exact, found, 10))
    assert recall[0] < recall[1] < recall[2] == 1


def test_codes_are_the_nearest_centroids_and_scores_those_of_what_they_stand_for() -> None:
    docs = vectors(300)
    quantiser = ProductQuantiser.fit(docs, parts=5, bits=3, seed=2)
    codes = quantiser.codes(docs)
    assert codes.shape == (5, 300) and codes.max() < 8
    rebuilt = np.zeros_like(docs)
    for part, (begin, end) in enumerate(zip(quantiser.bounds[:-1], quantiser.bounds[1:], strict=True)):
        centroids = quantiser.centroids[part]
        distance = ((docs[:, None, begin:end] - centroids) ** 2).sum(axis=2)
        assert distance[np.arange(300), codes[part]] == pytest.approx(distance.min(axis=1), abs=1e-5)
        rebuilt[:, begin:end] = centroids[codes[part]]
    query = vectors(1, seed=3)[0]
    assert quantiser.scores(query, codes) == pytest.approx(rebuilt @ query, abs=1e-5)
    same = ProductQuantiser.fit(docs, parts=5, bits=3, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(same.centroids, quantiser.centroids, strict=True))


def test_bytes_and_pages_of_each_tier() -> None:
    docs = vectors(400)
    index = TwoTierIndex(docs, 400, parts=8, bits=8)
    assert isinstance(index, TieredIndex) and not isinstance(DenseIndex(docs), TieredIndex)
    assert index.disk_bytes == docs.nbytes
    assert index.nbytes == 400 * 8 + 256 * 32 * 4
    assert tiers(index) == {"index bytes in memory": index.nbytes, "index bytes on disk": docs.nbytes}
    index.search(docs[:3], 5)
    assert index.pages_read == 3 * -(-docs.nbytes // PAGE), "all vectors: every page once a query"
    few = TwoTierIndex(docs, 1, parts=8)
    few.search(docs[:3], 5)
    assert few.pages_read == 3, "32 vectors of 128 bytes lie in a page, none across two"


def test_wrong_numbers_are_errors() -> None:
    docs = vectors(10)
    with pytest.raises(InputError, match="33 parts"):
        TwoTierIndex(docs, None, parts=33)
    with pytest.raises(InputError, match="bits"):
        TwoTierIndex(docs, None, parts=4, bits=9)
    index = TwoTierIndex(docs, None, parts=4)
    with pytest.raises(InputError, match="k must be 1"):
        index.search(docs, 0)
    with pytest.raises(InputError, match="dimensions"):
        index.search(docs[:, :3], 1)
