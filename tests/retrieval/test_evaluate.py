"""Metrics agree with trec_eval, ties and missing queries included; what BEIR gets wrong comes out right."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import evaluate, evaluate_qrels

TREC_EVAL = {"nDCG": "ndcg_cut", "Recall": "recall", "P": "P", "MAP": "map_cut"}
DOCS = [f"d{n}" for n in range(12)] + ["é", "Z", "\U0001f600"]
grades = st.dictionaries(st.sampled_from(DOCS), st.integers(0, 4), min_size=1, max_size=10)
# Few distinct scores, two of them equal in single precision only: most rankings have ties.
scores = st.dictionaries(st.sampled_from(DOCS), st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 2.5, -1.0]), max_size=15)
queries = st.sampled_from([f"q{n}" for n in range(6)])


def trec_eval(qrels: dict, run: dict, k: int) -> dict[str, dict[str, float]]:
    """pytrec_eval's values, with 0 for unanswered queries, as trec_eval -c."""
    measures = {f"{measure}.{k}" for measure in TREC_EVAL.values()} | {"map", "ndcg", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    values = {}
    for qid in qrels:
        got = found.get(qid, {})
        row = {f"{name}@{k}": got.get(f"{measure}_{k}", 0.0) for name, measure in TREC_EVAL.items()}
        rank = got.get("recip_rank", 0.0)
        row |= {"MAP": got.get("map", 0.0), "nDCG": got.get("ndcg", 0.0), "MRR": rank}
        row[f"MRR@{k}"] = rank if rank >= 1 / k else 0.0
        values[qid] = row
    return values


@settings(max_examples=300)
@given(st.dictionaries(queries, grades, min_size=1), st.dictionaries(queries, scores), st.integers(1, 20))
def test_every_query_agrees_with_trec_eval(qrels: dict, run: dict, k: int) -> None:
    expected = trec_eval(qrels, run, k)
    metrics = list(next(iter(expected.values())))
    got = evaluate_qrels(qrels, list(qrels), run, metrics)
    for metric in metrics:
        assert got.values[metric] == pytest.approx([expected[qid][metric] for qid in qrels], abs=1e-9), metric
        assert got.means()[metric] == pytest.approx(np.mean([expected[qid][metric] for qid in qrels]), abs=1e-9)


def test_long_random_runs_agree_with_trec_eval() -> None:
    rng = np.random.default_rng(0)
    docs = [f"doc{n}" for n in range(2000)]
    for decimals in (1, 2, 12):  # many ties, some ties, none
        run = {
            f"q{q}": dict(zip(rng.permutation(docs)[:1000], rng.random(1000).round(decimals).tolist(), strict=True))
            for q in range(20)
        }
        qrels = {f"q{q}": {d: int(rng.integers(0, 4)) for d in rng.permutation(docs)[:50]} for q in range(20)}
        expected = trec_eval(qrels, run, 100)
        got = evaluate_qrels(qrels, list(qrels), run, ["nDCG@100", "Recall@100", "P@100", "MAP@100", "MAP", "MRR"])
        for metric, values in got.values.items():
            assert values == pytest.approx([expected[qid][metric] for qid in qrels], abs=1e-9), metric


def collection(**options: object) -> Collection:
    corpus = {str(n): f"text {n}" for n in range(1, 5)}
    qrels = {"1": {"1": 1, "2": 1}, "2": {"3": 1}}
    return Collection.from_dicts("c", corpus, {"1": "a", "2": "b"}, qrels, **options)  # type: ignore[arg-type]


def test_a_query_that_the_run_leaves_out_counts_zero() -> None:
    """BEIR's evaluation gives this run an nDCG of 1."""
    result = evaluate(collection(), {"1": {"1": 2.0, "2": 1.0}}, ["nDCG@10"])
    assert result.means() == {"nDCG@10": 0.5}
    assert result.unanswered == ["2"]


def test_a_query_answered_with_nothing_counts_zero() -> None:
    result = evaluate(collection(), {"1": {}, "2": {"3": 1.0}}, ["nDCG@10", "MRR@10"])
    assert result.means() == {"nDCG@10": 0.5, "MRR@10": 0.5}
    assert result.unanswered == ["1"]


def test_a_run_of_nothing_is_zero_not_an_error() -> None:
    assert set(evaluate(collection(), {}).means().values()) == {0.0}


def test_queries_that_are_not_judged_count_nowhere() -> None:
    result = evaluate(collection(), {"1": {"1": 1.0}, "9": {"1": 1.0}}, ["MRR@10"])
    assert result.means() == {"MRR@10": 0.5}
    assert result.unjudged == ["9"]


def test_a_query_without_relevant_documents_is_in_the_mean_as_in_trec_eval() -> None:
    result = evaluate_qrels({"1": {"a": 1}, "2": {"a": 0}}, ["1", "2"], {"1": {"a": 1.0}, "2": {"a": 1.0}})
    assert result.values["nDCG@10"].tolist() == [1.0, 0.0]


def test_identical_ids_stay_unless_the_collection_says_otherwise() -> None:
    """BEIR drops them always: wrong where ids are numbers and document 1 is no copy of query 1."""
    run = {"1": {"1": 2.0, "4": 1.5, "2": 1.0}, "2": {"3": 1.0}}
    assert evaluate(collection(), run, ["MRR@10"]).means() == {"MRR@10": 1.0}
    assert evaluate(collection(drop_identical_ids=True), run, ["MRR@10"]).means() == {"MRR@10": 0.75}


def test_the_run_is_not_changed() -> None:
    run = {"1": {"1": 2.0, "2": 1.0}}
    before = copy.deepcopy(run)
    evaluate(collection(drop_identical_ids=True), run)
    assert run == before


def test_ties_do_not_depend_on_insertion() -> None:
    """The case in which ranx gives 0.5 or 1.0, by the order of the dictionary."""
    for docs in ("123", "321", "213"):
        run = {"q": dict.fromkeys(docs, 1.0)}
        assert evaluate_qrels({"q": {"3": 1}}, ["q"], run, ["MRR@10"]).means() == {"MRR@10": 1.0}


@pytest.mark.parametrize(
    "metric",
    ["ndcg@10", "nDCG@0", "nDCG@-1", "nDCG@", "P", "F1@10", "", pytest.param("nDCG@" + "9" * 5000, id="5000 digits")],
)
def test_an_unknown_metric_is_an_error(metric: str) -> None:
    with pytest.raises(InputError, match="unknown metric"):
        evaluate(collection(), {}, [metric])


def test_a_metric_without_a_cut_off_is_of_so_many_ranks_as_are_asked_for() -> None:
    run = {"q": {f"d{n}": 10.0 - n for n in range(6)}}
    qrels = {"q": {"d0": 1, "d5": 1}}
    metrics = ["MAP", "Recall", "Recall@6"]
    whole, cut = (evaluate_qrels(qrels, ["q"], run, metrics, depth=depth).means() for depth in (None, 3))
    assert whole == pytest.approx({"MAP": (1 + 2 / 6) / 2, "Recall": 1.0, "Recall@6": 1.0})
    assert cut == pytest.approx({"MAP": 0.5, "Recall": 0.5, "Recall@6": 1.0})


def test_a_cut_off_far_beyond_the_run_takes_no_memory() -> None:
    run = {f"q{n}": {"d1": 1.0} for n in range(100)}
    qrels = {f"q{n}": {"d1": 1} for n in range(100)}
    found = evaluate_qrels(qrels, list(qrels), run, ["nDCG@100000000000", "P@1000000000", "MAP@1000000000"]).means()
    assert found == pytest.approx({"nDCG@100000000000": 1.0, "P@1000000000": 1e-9, "MAP@1000000000": 1.0})
