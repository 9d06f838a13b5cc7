"""Fused scores: golden values of ranx, and properties."""

from __future__ import annotations

import numpy as np
import pytest

from sparsebench.errors import InputError
from sparsebench.retrieval.fusion import interpolate, min_max, reciprocal_rank_fusion, weighted_sum
from sparsebench.retrieval.run import Run

DOCS = ["a", "b", "c", "d", "e"]
SPARSE = {"q1": {"a": 9.0, "b": 7.5, "c": 3.0, "e": 1.0}, "q2": {"a": 2.0, "d": 1.0}, "q3": {"b": 4.0}}
DENSE = {"q1": {"c": 0.9, "a": 0.7, "d": 0.4}, "q2": {"b": 0.8, "c": 0.6, "a": 0.1}, "q3": {"b": 0.3, "d": 0.2}}

# ranx 0.3.21: fuse(norm="min-max", method="wsum"), fuse(norm=None, method="wsum"), fuse(method="rrf", k=60)
MIN_MAX_3 = {
    "q1": {"c": 0.775, "a": 0.72, "b": 0.24375, "e": 0.0, "d": 0.0},
    "q2": {"b": 0.7, "c": 0.5, "a": 0.3, "d": 0.0},
    "q3": {"b": 0.7, "d": 0.0},
}
MIN_MAX_7 = {
    "q1": {"a": 0.88, "b": 0.56875, "c": 0.475, "e": 0.0, "d": 0.0},
    "q2": {"a": 0.7, "b": 0.3, "c": 0.2142857142857143, "d": 0.0},
    "q3": {"b": 0.3, "d": 0.0},
}
RAW = {
    "q1": {"a": 1.6, "c": 1.2, "b": 0.75, "d": 0.4, "e": 0.1},
    "q2": {"b": 0.8, "c": 0.6, "a": 0.3, "d": 0.1},
    "q3": {"b": 0.7, "d": 0.2},
}
RANKS = {
    "q1": {
        "a": 0.03252247488101534,
        "c": 0.032266458495966696,
        "b": 0.016129032258064516,
        "d": 0.015873015873015872,
        "e": 0.015625,
    },
    "q2": {"a": 0.032266458495966696, "b": 0.01639344262295082, "d": 0.016129032258064516, "c": 0.016129032258064516},
    "q3": {"b": 0.03278688524590164, "d": 0.016129032258064516},
}


def runs() -> list[Run]:
    return [Run.from_dict(SPARSE, DOCS), Run.from_dict(DENSE, DOCS)]


def same(run: Run, expected: dict[str, dict[str, float]]) -> bool:
    got = run.to_dict()
    assert list(got) == list(expected)
    return all(got[qid] == pytest.approx(expected[qid], rel=1e-6, abs=1e-9) for qid in expected)


def test_interpolation_is_ranxs() -> None:
    assert same(interpolate(*runs(), alpha=0.3), MIN_MAX_3)
    assert same(interpolate(*runs(), alpha=0.7), MIN_MAX_7)


def test_raw_weighted_sums_are_ranxs() -> None:
    assert same(weighted_sum(runs(), [0.1, 1.0], normalise=False), RAW)


def test_reciprocal_ranks_are_ranxs() -> None:
    assert same(reciprocal_rank_fusion(runs()), RANKS)


def test_a_missing_document_may_get_the_least_score() -> None:
    fused = weighted_sum(runs(), [0.1, 1.0], normalise=False, missing="minimum").to_dict()
    assert fused["q1"] == pytest.approx({"a": 1.6, "c": 1.2, "b": 1.15, "d": 0.5, "e": 0.5})
    assert fused["q3"] == pytest.approx({"b": 0.7, "d": 0.6})


def test_one_weight_of_one_is_the_run_itself() -> None:
    sparse, dense = runs()
    alone = interpolate(sparse, dense, alpha=1.0)
    for qid in SPARSE:
        found = set(sparse.ranking(qid))
        assert [doc for doc in alone.ranking(qid) if doc in found and alone.to_dict()[qid][doc] > 0] == [
            doc for doc in sparse.ranking(qid) if alone.to_dict()[qid][doc] > 0
        ]


def test_scores_are_between_0_and_1_even_where_all_are_equal_or_none() -> None:
    run = Run.from_dict({"q1": {"a": -3.0, "b": 5.0, "c": 1.0}, "q2": {"a": 7.0, "b": 7.0}, "q3": {}})
    assert min_max(run.hits) == pytest.approx([1, 0.5, 0, 0, 0])


def test_fusion_is_of_all_queries_and_to_a_depth() -> None:
    empty, dense = (
        Run.from_dict({"q1": {}, "q2": {"a": 1.0}}, DOCS),
        Run.from_dict({"q1": {"b": 1.0}, "q2": {"c": 2.0, "b": 1.0}}, DOCS),
    )
    fused = reciprocal_rank_fusion([empty, dense], depth=2)
    assert fused.ranking("q1") == ["b"]
    assert fused.ranking("q2") == ["c", "a"]  # equal: the higher id is first


def test_the_order_of_runs_does_not_change_reciprocal_ranks() -> None:
    forth, back = reciprocal_rank_fusion(runs()), reciprocal_rank_fusion(runs()[::-1])
    assert np.array_equal(forth.hits.docs, back.hits.docs)


def test_runs_that_do_not_fit_together_are_errors() -> None:
    sparse, dense = runs()
    with pytest.raises(InputError, match="different queries"):
        interpolate(sparse, Run.from_dict({"q1": {"a": 1.0}}, DOCS), 0.5)
    with pytest.raises(InputError, match="different collections"):
        interpolate(sparse, Run.from_dict(DENSE, [*DOCS, "f"]), 0.5)
    with pytest.raises(InputError, match="2 runs have 1 weights"):
        weighted_sum([sparse, dense], [1.0])
    with pytest.raises(InputError, match="alpha"):
        interpolate(sparse, dense, 1.5)
    with pytest.raises(InputError, match="no runs"):
        reciprocal_rank_fusion([])
