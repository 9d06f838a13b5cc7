"""BM25 is bm25s's BM25, with an analyser that is stated and a ranking that does not vary."""

from __future__ import annotations

import os
import subprocess
import sys

import bm25s
import numpy as np
import pytest
import Stemmer

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.bm25 import BM25, Analyser

DOCS = [
    "The cat sat on the mat with another cat",
    "Dogs and cats are running in the park",
    "A study of running water, and of waters that run",
    "Parks",
    "",
    "the of and",
]
QUERIES = ["cats running", "the park", "unknown words", "", "water water"]


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
@pytest.mark.parametrize("stemmer", ["porter", None])
@pytest.mark.parametrize("stopwords", ["en", None])
def test_scores_are_those_of_bm25s(method: str, stemmer: str | None, stopwords: str | None) -> None:
    config = BM25(k1=1.2, b=0.75, method=method, analyser=Analyser(stemmer, stopwords))  # type: ignore[arg-type]
    hits = config.index(DOCS).search(QUERIES, k=len(DOCS))
    options = {"stopwords": stopwords, "stemmer": Stemmer.Stemmer(stemmer) if stemmer else None, "show_progress": False}
    reference = bm25s.BM25(k1=1.2, b=0.75, method=method)
    reference.index(bm25s.tokenize(DOCS, **options), show_progress=False)
    for query, text in enumerate(QUERIES):
        tokens = bm25s.tokenize([text], return_ids=False, **options)[0]
        known = reference.get_tokens_ids(tokens)
        expected = reference.get_scores_from_ids(known) if known else np.zeros(len(DOCS))
        docs, scores = hits.row(query)
        assert scores == pytest.approx(expected[docs], rel=1e-5)
        assert sorted(docs.tolist()) == np.flatnonzero(expected > 0).tolist()


def test_a_term_that_comes_twice_in_the_query_counts_twice() -> None:
    index = BM25().index(DOCS)
    once, twice = index.search(["water", "water water"], 1).scores
    assert twice == pytest.approx(2 * once)


def test_documents_without_a_query_term_are_no_hits_and_k_may_exceed_the_corpus() -> None:
    hits = BM25().index(DOCS).search(QUERIES, k=1000)
    assert hits.counts.tolist() == [3, 2, 0, 0, 1]


def test_equal_documents_rank_by_number() -> None:
    assert BM25().index(["same text"] * 5).search(["text"], 3).docs.tolist() == [4, 3, 2]


def test_postings_touched_are_those_of_the_query_terms() -> None:
    hits = BM25(analyser=Analyser(None, None)).index(["a1 b1", "a1", "c1"]).search(["a1 b1 zz", "c1 c1"], 5)
    assert hits.touched is not None
    assert hits.touched.tolist() == [3, 1]


def test_scores_are_the_same_in_every_process() -> None:
    """Sets of strings have another order in every process, and with it sums of single-precision numbers."""
    program = (
        "from sparsebench.retrieval.bm25 import BM25\n"
        "docs = [' '.join(f'w{(7 * i * j) % 97}' for j in range(1, 40)) for i in range(60)]\n"
        "hits = BM25().index(docs).search([' '.join(f'w{i}' for i in range(60))], 60)\n"
        "print(hits.docs.tobytes().hex(), hits.scores.tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_stemming_and_stop_words_are_as_stated() -> None:
    assert Analyser("porter", "en").terms(["The Ponies running"]) == [["poni", "run"]]
    assert Analyser(None, None).terms(["The Ponies running a"]) == [["the", "ponies", "running"]]


def test_all_that_decides_the_scores_is_recorded() -> None:
    described = BM25().describe()
    assert {"k1", "b", "method", "analyser", "bm25s", "pystemmer"} <= set(described)
    assert described["analyser"] == {"stemmer": "porter", "stopwords": "en", "pattern": r"(?u)\b\w\w+\b"}


def test_wrong_configurations_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="porter"):
        Analyser(stemmer="portter")
    with pytest.raises(InputError, match="stop words"):
        Analyser(stopwords="klingon").terms(["a"])
    with pytest.raises(InputError, match="regular expression"):
        Analyser(pattern="(")
    with pytest.raises(InputError, match="b ="):
        BM25(b=1.5)
    with pytest.raises(InputError, match="k1"):
        BM25(k1=-1)
    with pytest.raises(UnknownNameError, match="lucene"):
        BM25(method="lucen")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no document has a term"):
        BM25().index(["the", ""])
