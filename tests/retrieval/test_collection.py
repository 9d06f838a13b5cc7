"""What a collection promises: unique ids, judgements that can match, choices that are stated."""

from __future__ import annotations

import random

import pytest

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.collection import Collection, apply_grade_policy
from sparsebench.retrieval.evaluate import evaluate

CORPUS = {
    "d2": {"title": "Two", "text": "second"},
    "d1": {"title": None, "text": "first"},
    "d3": {"title": "Three", "text": ""},
}
QUERIES = {"q2": "beta", "q1": "alpha", "q3": "not judged"}
QRELS = {"q1": {"d1": 2, "d3": 0}, "q2": {"d2": 1}}


def test_documents_are_in_the_order_of_their_ids_and_queries_in_theirs() -> None:
    collection = Collection.from_dicts("c", CORPUS, QUERIES, QRELS)
    assert list(collection.doc_ids) == ["d1", "d2", "d3"]
    assert list(collection.query_ids) == ["q2", "q1"]
    assert collection.documents() == ["first", "Two second", "Three"]


def test_the_field_policy_decides_what_is_indexed() -> None:
    assert Collection.from_dicts("c", CORPUS, QUERIES, QRELS, field_policy="text").documents() == [
        "first",
        "second",
        "",
    ]
    assert Collection.from_dicts("c", CORPUS, QUERIES, QRELS, field_policy="title").documents() == ["", "Two", "Three"]
    with pytest.raises(UnknownNameError, match="title_text"):
        Collection.from_dicts("c", CORPUS, QUERIES, QRELS, field_policy="title_txt")  # type: ignore[arg-type]


def test_the_hash_is_of_the_content_whatever_its_order() -> None:
    first = Collection.from_dicts("c", CORPUS, QUERIES, QRELS)
    for seed in range(5):
        shuffle = random.Random(seed).sample
        corpus = {doc: CORPUS[doc] for doc in shuffle(sorted(CORPUS), 3)}
        queries = {qid: QUERIES[qid] for qid in shuffle(sorted(QUERIES), 3)}
        qrels = {qid: dict(shuffle(sorted(QRELS[qid].items()), len(QRELS[qid]))) for qid in shuffle(sorted(QRELS), 2)}
        assert Collection.from_dicts("other name", corpus, queries, qrels).content_hash == first.content_hash


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels"),
    [
        ({**CORPUS, "d1": {"title": "", "text": "first."}}, QUERIES, QRELS),
        ({**CORPUS, "d2": {"title": "Two second", "text": ""}}, QUERIES, QRELS),
        (CORPUS, {**QUERIES, "q1": "Alpha"}, QRELS),
        (CORPUS, QUERIES, {**QRELS, "q1": {"d1": 1, "d3": 0}}),
        (CORPUS, QUERIES, {**QRELS, "q1": {"d1": 2}}),
    ],
)
def test_any_change_of_content_changes_the_hash(corpus: dict, queries: dict, qrels: dict) -> None:
    first = Collection.from_dicts("c", CORPUS, QUERIES, QRELS)
    assert Collection.from_dicts("c", corpus, queries, qrels).content_hash != first.content_hash


def test_a_judged_document_that_is_missing_stays_in_the_ideal_ranking() -> None:
    collection = Collection.from_dicts("c", CORPUS, QUERIES, {"q1": {"d1": 1, "gone": 1}})
    assert collection.missing_docs == collection.describe()["missing_docs"] == 1
    means = evaluate(collection, {"q1": {"d1": 1.0}}, ["Recall@10", "nDCG@10", "MAP@10"]).means()
    assert means["Recall@10"] == means["MAP@10"] == 0.5
    assert means["nDCG@10"] < 1
    (note,) = collection.notes
    assert "1 of 2 judgements" in note
    assert Collection.from_dicts("c", CORPUS, QUERIES, QRELS).notes == ()


def test_ids_padded_otherwise_than_in_the_corpus_are_an_error() -> None:
    """CACM's judgements say CACM-756 of CACM-0756: 55 of 796 were silently without effect."""
    corpus = {"CACM-0756": "a", "CACM-1410": "b"}
    with pytest.raises(InputError, match="'CACM-756', the corpus 'CACM-0756'"):
        Collection.from_dicts("cacm", corpus, {"1": "q"}, {"1": {"CACM-756": 1, "CACM-1410": 1}})


def test_judgements_of_another_corpus_are_an_error() -> None:
    with pytest.raises(InputError, match="none of the 2 judged documents"):
        Collection.from_dicts("c", CORPUS, QUERIES, {"q1": {"x": 1, "y": 1}})


def test_a_judged_query_without_text_is_an_error() -> None:
    with pytest.raises(InputError, match="'q9' is judged but has no text"):
        Collection.from_dicts("c", CORPUS, QUERIES, {"q9": {"d1": 1}})


@pytest.mark.parametrize(("corpus", "qrels"), [({}, QRELS), (CORPUS, {}), (CORPUS, {"q1": {}})])
def test_an_empty_collection_is_an_error(corpus: dict, qrels: dict) -> None:
    with pytest.raises(InputError, match="has no"):
        Collection.from_dicts("c", corpus, QUERIES, qrels)


def test_what_a_negative_grade_means_must_be_said() -> None:
    """Cranfield's -1 marks the document that answers best; dropping it costs .15 nDCG@10."""
    raw = {"1": {"a": -1, "b": 4, "c": 0}}
    with pytest.raises(InputError, match="negative_best"):
        apply_grade_policy(raw, "plain")
    assert apply_grade_policy(raw, "negative_best") == {"1": {"a": 5, "b": 4, "c": 0}}
    assert apply_grade_policy(raw, "negative_zero") == {"1": {"a": 0, "b": 4, "c": 0}}
    assert apply_grade_policy(raw, "binary") == {"1": {"a": 0, "b": 1, "c": 0}}


def test_describe_counts_what_a_reader_must_know() -> None:
    described = Collection.from_dicts("c", CORPUS, QUERIES, {**QRELS, "q3": {"d1": 0}}).describe()
    assert described["queries"] == 3
    assert described["queries_without_relevant"] == 1
    assert (described["documents"], described["judgements"], described["relevant"]) == (3, 4, 2)
