"""Chamfer similarity is its definition; encodings of MUVERA have the properties that its theory rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.retrieval import late_interaction
from sparsebench.retrieval.late_interaction import ChamferIndex, Staged, TokenVectors, chamfer, chamfer_sizes
from sparsebench.retrieval.muvera import FixedDimensional

DIMENSIONS = 8


def texts(seed: int, count: int, longest: int = 9, dimensions: int = DIMENSIONS) -> TokenVectors:
    random = np.random.default_rng(seed)
    return TokenVectors.of([random.normal(size=(n, dimensions)) for n in random.integers(1, longest + 1, size=count)])


def rows(some: TokenVectors) -> list[np.ndarray]:
    return [some.vectors[begin:end] for begin, end in zip(some.starts[:-1], some.starts[1:], strict=True)]


def by_definition(query: np.ndarray, docs: TokenVectors) -> np.ndarray:
    return np.array([(query @ doc.T).max(axis=1).sum() for doc in rows(docs)])


@given(st.integers(0, 50), st.integers(1, 20))
def test_chamfer_is_the_sum_of_the_best_products(seed: int, count: int) -> None:
    docs, query = texts(seed, count), rows(texts(seed + 1, 1))[0]
    assert chamfer(query, docs) == pytest.approx(by_definition(query, docs), abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late_interaction, "_TOKENS_AT_ONCE", 4)
        assert chamfer(query, docs) == pytest.approx(by_definition(query, docs), abs=1e-5)


@given(st.integers(0, 50), st.lists(st.integers(0, 7), min_size=1, max_size=8))
def test_some_texts_are_those_texts(seed: int, chosen: list[int]) -> None:
    docs = texts(seed, 8)
    some = docs[np.array(chosen)]
    for number, doc in zip(chosen, rows(some), strict=True):
        assert np.array_equal(doc, rows(docs)[number])
    assert np.allclose(np.linalg.norm(docs.vectors, axis=1), 1, atol=1e-6)


def test_a_text_without_tokens_is_an_error() -> None:
    with pytest.raises(InputError, match="no token"):
        TokenVectors(np.zeros((2, 3), np.float32), np.array([0, 2, 2]))


def staged(seed: int, count: int) -> Staged:
    fine = texts(seed, count)
    return Staged(np.stack([row.mean(axis=0) for row in rows(fine)]), fine)


def test_all_candidates_are_the_exact_ranking_and_fewer_are_part_of_it() -> None:
    docs, queries = staged(0, 60), staged(1, 5)
    exact = ChamferIndex(docs).search(queries, 60)
    for query in range(5):
        found, scores = exact.row(query)
        expected = by_definition(rows(queries.fine)[query], docs.fine)
        assert scores == pytest.approx(expected[found], abs=1e-5)
        assert np.all(np.diff(scores) <= 0) and sorted(found.tolist()) == list(range(60))
    assert ChamferIndex(docs, 60).search(queries, 60).docs.tolist() == exact.docs.tolist()
    few = ChamferIndex(docs, 12)
    hits = few.search(queries, 60)
    assert hits.counts.tolist() == [12] * 5
    for query in range(5):
        chosen = set(np.argsort(-(docs.coarse @ queries.coarse[query]))[:12].tolist())
        in_order = [doc for doc in exact.row(query)[0].tolist() if doc in chosen]
        assert hits.row(query)[0].tolist() == in_order
        assert hits.touched is not None
        assert hits.touched[query] == docs.fine.counts[sorted(chosen)].sum()
    sizes = chamfer_sizes(docs, queries, few, hits)
    pairs = sum(int(hits.touched[q]) * len(rows(queries.fine)[q]) for q in range(5))
    assert sizes["flops"] == 2 * DIMENSIONS * (pairs + 60 * 5)
    assert sizes["flops_dense"] == 2 * DIMENSIONS * len(docs.fine.vectors) * len(queries.fine.vectors)


def test_wrong_searches_are_errors() -> None:
    docs = staged(0, 4)
    with pytest.raises(InputError, match="k must be 1"):
        ChamferIndex(docs).search(docs, 0)
    other = Staged(np.zeros((1, 3), np.float32), texts(0, 1, dimensions=3))
    with pytest.raises(InputError, match="dimensions"):
        ChamferIndex(docs).search(other, 1)


def products(form: FixedDimensional, queries: TokenVectors, docs: TokenVectors) -> np.ndarray:
    return form.queries(queries) @ form.documents(docs).T


def test_one_bucket_is_the_sum_and_the_mean() -> None:
    form = FixedDimensional(DIMENSIONS, repetitions=2, planes=0, projection=None)
    queries, docs = texts(0, 3), texts(1, 4)
    assert form.size == 2 * DIMENSIONS
    for encoded, fold, some in ((form.queries(queries), np.sum, queries), (form.documents(docs), np.mean, docs)):
        expected = [np.tile(fold(row, axis=0), 2) for row in rows(some)]
        assert encoded == pytest.approx(np.stack(expected), abs=1e-5)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 5))
def test_a_document_of_one_token_is_scored_exactly(seed: int, planes: int) -> None:
    """It fills every bucket, so that each query token meets it, in each repetition."""
    form = FixedDimensional(DIMENSIONS, repetitions=3, planes=planes, projection=None, seed=seed)
    queries, docs = texts(seed, 4), texts(seed + 1, 6, longest=1)
    exact = np.stack([by_definition(query, docs) for query in rows(queries)])
    assert products(form, queries, docs) == pytest.approx(3 * exact, abs=1e-4)


@settings(deadline=None)
@given(st.integers(0, 30))
def test_no_encoding_promises_more_than_there_is(seed: int) -> None:
    """Without a projection every query token meets a mean of document tokens, which is never above their maximum."""
    form = FixedDimensional(DIMENSIONS, repetitions=4, planes=3, projection=None, seed=seed)
    queries, docs = texts(seed, 4), texts(seed + 1, 6)
    exact = np.stack([by_definition(query, docs) for query in rows(queries)])
    assert np.all(products(form, queries, docs) / 4 <= exact + 1e-4)


def test_queries_are_linear_and_documents_do_not_depend_on_their_neighbours() -> None:
    form = FixedDimensional(DIMENSIONS, repetitions=3, planes=4, projection=4, seed=1)
    first, second = rows(texts(0, 2))
    both = TokenVectors.of([first, second, np.concatenate([first, second])])
    encoded = form.queries(both)
    assert encoded[2] == pytest.approx(encoded[0] + encoded[1], abs=1e-5)
    docs = texts(3, 9)
    alone = np.concatenate([form.documents(docs[number : number + 1]) for number in range(9)])
    assert form.documents(docs) == pytest.approx(alone, abs=1e-6)


def test_empty_buckets_of_documents_have_the_token_that_differs_least() -> None:
    form = FixedDimensional(DIMENSIONS, repetitions=1, planes=3, projection=None, seed=5)
    doc = texts(7, 1, longest=4)
    normals = np.random.default_rng([5, 0]).standard_normal((DIMENSIONS, 3), dtype=np.float32)
    sides = rows(doc)[0] @ normals > 0
    encoded = form.documents(doc).reshape(8, DIMENSIONS)
    for bucket in range(8):
        wanted = np.array([bool(bucket >> plane & 1) for plane in range(3)])
        away = (sides != wanted).sum(axis=1)
        expected = rows(doc)[0][away == 0].mean(axis=0) if (away == 0).any() else rows(doc)[0][away.argmin()]
        assert encoded[bucket] == pytest.approx(expected, abs=1e-6)


def test_more_repetitions_find_more_of_the_exact_ranking() -> None:
    docs, queries = texts(0, 300, dimensions=32), texts(1, 40, dimensions=32)
    exact = np.stack([by_definition(query, docs) for query in rows(queries)])
    best = exact.argmax(axis=1)

    def found(repetitions: int) -> float:
        scores = products(FixedDimensional(32, repetitions, planes=4, projection=16), queries, docs)
        first = np.argsort(-scores, axis=1)[:, :20]
        return float(np.mean([wanted in row for wanted, row in zip(best, first, strict=True)]))

    assert found(1) < found(16)
    assert found(16) > 0.5, "by chance .07"


@pytest.mark.parametrize("wrong", [{"repetitions": 0}, {"planes": 31}, {"planes": -1}, {"projection": 0}])
def test_numbers_out_of_range_are_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="fixed-dimensional"):
        FixedDimensional(DIMENSIONS, **wrong)
    with pytest.raises(InputError, match="dimensions"):
        FixedDimensional(3).queries(texts(0, 1))
