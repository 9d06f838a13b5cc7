"""Runs: one order whatever the order of insertion, deterministic cuts, and TREC files that read back the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.retrieval.run import Run, read_trec, write_trec

ids = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=3)
rankings = st.dictionaries(ids, st.sampled_from([0.5, 1.0, 1.0 + 1e-9, 2.0, -3.0]), max_size=8)
runs = st.dictionaries(ids, rankings, max_size=5)


@given(runs, st.randoms())
def test_the_order_is_trec_evals_whatever_the_order_of_insertion(scores: dict, rng: random.Random) -> None:
    shuffled = {qid: dict(rng.sample(list(row.items()), len(row))) for qid, row in scores.items()}
    run = Run.from_dict(shuffled)
    for qid, row in scores.items():
        single = {doc: np.float32(score) for doc, score in row.items()}
        descending = sorted(row, key=lambda doc: doc.encode(), reverse=True)
        assert run.ranking(qid) == sorted(descending, key=lambda doc: -single[doc])


@given(runs, st.integers(1, 9))
def test_a_cut_is_the_head(scores: dict, depth: int) -> None:
    run = Run.from_dict(scores)
    assert all(run.cut(depth).ranking(qid) == run.ranking(qid)[:depth] for qid in scores)


def test_a_cut_through_a_tie_does_not_depend_on_insertion() -> None:
    forth, back = {"q": dict.fromkeys("abcd", 1.0)}, {"q": dict.fromkeys("dcba", 1.0)}
    assert Run.from_dict(forth).cut(2).ranking("q") == Run.from_dict(back).cut(2).ranking("q") == ["d", "c"]


@given(runs)
def test_a_dictionary_comes_back(scores: dict) -> None:
    again = Run.from_dict(scores).to_dict()
    assert {q: {d: np.float32(s) for d, s in row.items()} for q, row in scores.items()} == again


def test_a_collections_ids_are_taken_and_checked() -> None:
    doc_ids = ["a", "b", "c"]
    run = Run.from_dict({"q": {"b": 1.0}}, doc_ids)
    assert run.doc_ids is doc_ids
    with pytest.raises(InputError, match="'z'"):
        Run.from_dict({"q": {"z": 1.0}}, doc_ids)
    with pytest.raises(InputError, match="ascending"):
        Run.from_dict({"q": {"b": 1.0}}, ["b", "a"])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "high", None])
def test_a_score_that_is_no_number_is_an_error(score: object) -> None:
    with pytest.raises(InputError):
        Run.from_dict({"q": {"d": score}})  # type: ignore[dict-item]


def test_identical_ids_are_dropped_from_their_own_query_only() -> None:
    run = Run.from_dict({"1": {"1": 3.0, "2": 2.0}, "2": {"1": 1.0}, "3": {}, "x": {"1": 1.0}})
    assert run.without_identical_ids().to_dict() == {"1": {"2": 2.0}, "2": {"1": 1.0}, "3": {}, "x": {"1": 1.0}}


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_trec_file_reads_back_the_same(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40) * 10.0 ** rng.integers(-6, 6, 40)
    run = Run.from_dict({"q1": {f"d{n}": float(v) for n, v in enumerate(values)}, "q2": {"d1": 0.1}})
    write_trec(run, tmp_path / name, tag="tag")
    again = read_trec(tmp_path / name)
    assert again.to_dict() == run.to_dict()


def test_a_trec_files_scores_decide_not_its_ranks(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 a 1 1.0 t\nq Q0 b 2 2.0 t\nq Q0 c 3 2.0 t\n")
    assert read_trec(tmp_path / "run").ranking("q") == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 a 1 1.0 t\nq Q0 a 2 0.5 t\n", ":2: document 'a' comes a second time"),
        ("q Q0 a 1 1.0\n", ":1: 5 columns"),
        ("q Q0 a 1 best t\n", ":1: the score 'best' is not a number"),
    ],
)
def test_a_trec_file_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run").write_text(content)
    with pytest.raises(InputError, match=message):
        read_trec(tmp_path / "run")


@pytest.mark.parametrize("doc", ["two words", "", "line\nbreak"])
def test_an_id_that_trecs_form_cannot_hold_is_an_error(tmp_path: Path, doc: str) -> None:
    with pytest.raises(InputError, match="TREC"):
        write_trec(Run.from_dict({"q": {doc: 1.0}}), tmp_path / "run", tag="t")
