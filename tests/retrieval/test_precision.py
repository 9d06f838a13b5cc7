"""Queries of exact words: what answers them is every document that has them, and no other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.bm25 import BM25, Analyser
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import evaluate
from sparsebench.retrieval.precision import precision_collection
from sparsebench.retrieval.run import Run
from sparsebench.tasks import registry


@pytest.fixture(scope="module")
def documentation() -> Collection:
    bound: Any = registry.get("documentation-search").bind(None)
    return bound.collection


@pytest.mark.parametrize(("kind", "words"), [("keywords", 2), ("keywords", 3), ("passages", 8)])
def test_answers_are_the_documents_that_have_the_words(documentation: Collection, kind: str, words: int) -> None:
    made = precision_collection(documentation, kind, queries=40, words=words)
    texts = [" ".join(re.findall(r"\w\w+", document.lower())) for document in documentation.documents()]
    for qid, query in zip(made.query_ids, made.queries, strict=True):
        assert len(query.split()) == words
        if kind == "passages":
            having = {n for n, text in enumerate(texts) if f" {query} " in f" {text} "}
        else:
            having = {n for n, text in enumerate(texts) if set(query.split()) <= set(text.split())}
        assert {documentation.doc_ids[n] for n in having} == set(made.qrels[qid])


def test_draws_depend_on_the_seed_alone(documentation: Collection) -> None:
    hashes = [precision_collection(documentation, "keywords", queries=20, seed=s).content_hash for s in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert precision_collection(documentation, "keywords", queries=20).texts == documentation.texts


def test_exact_words_find_passages(documentation: Collection) -> None:
    made = precision_collection(documentation, "passages", queries=50)
    hits = BM25(analyser=Analyser(None, None)).index(made.documents()).search(made.queries, 10)
    assert evaluate(made, Run(made.query_ids, made.doc_ids, hits), ["MRR@10"]).means()["MRR@10"] > 0.9


def test_what_cannot_be_asked_is_refused(documentation: Collection) -> None:
    with pytest.raises(UnknownNameError):
        precision_collection(documentation, "sentences")
    with pytest.raises(InputError, match="are asked for"):
        precision_collection(documentation, "passages", queries=5, words=100_000)


@pytest.mark.parametrize("kind", ["keywords", "passages"])
def test_tasks_of_the_package_have_their_queries(kind: str) -> None:
    bound: Any = registry.get(f"documentation-{kind}").bind(None)
    assert len(bound.collection.query_ids) == 400 and bound.collection.split == kind
    assert bound.spec.data != (registry.get("documentation-search").bind(None)).spec.data
