"""Queries with documents to tell apart: which are trained on, which stand against them, what a teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.bm25 import BM25
from sparsebench.retrieval.collection import Collection, position
from sparsebench.retrieval.training.settings import Settings

_MINED = 50
"""Documents of BM25's ranking from which negatives are drawn."""
_LEAST_WORDS = 3


@dataclass(frozen=True, eq=False)
class Examples:
    """What a run is trained on.

    Attributes:
        queries: Texts that ask.
        documents: Texts that answer, numbered as in the collection.
        relevant: Documents that answer each query.
        hard: Documents that BM25 ranks high for each query and that do not answer it.
        teacher: Scores of all documents for all queries, `float32 [queries, documents]`; None without a teacher.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[NDArray[np.int64]]
    hard: Sequence[NDArray[np.int64]]
    teacher: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Batch:
    """Queries of one step, and its documents.

    Attributes:
        queries: Numbers of the queries, `[queries]`.
        documents: Numbers of the documents: each query's own first, in the order of the queries.
        allowed: Which documents stand against a query's own, `bool [queries, documents]`.
    """

    queries: NDArray[np.int64]
    documents: NDArray[np.int64]
    allowed: NDArray[np.bool_]


def examples(settings: Settings, collection: Collection) -> Examples:
    """Examples of a collection.

    Raises:
        InputError: There are fewer queries than a batch takes.
    """
    if settings.queries == "titles":
        queries, documents, relevant = _titles(collection)
    else:
        queries, documents = list(collection.queries), collection.documents()
        places = [
            [position(collection.doc_ids, doc) for doc, grade in collection.qrels[query].items() if grade > 0]
            for query in collection.query_ids
        ]
        relevant = [np.array([p for p in row if p >= 0], dtype=np.int64) for row in places]
        kept = [number for number, row in enumerate(relevant) if len(row)]
        queries, relevant = [queries[n] for n in kept], [relevant[n] for n in kept]
    if len(queries) < settings.batch:
        raise InputError(
            f"{collection.name} has {len(queries)} queries to train on, a batch takes {settings.batch}",
            "fewer queries a batch, or queries: judged where there are no titles",
        )
    hits = BM25().index(documents).search(queries, _MINED)
    hard = [np.setdiff1d(hits.row(number)[0], row) for number, row in enumerate(relevant)]
    teacher = _teacher_scores(settings, queries, documents) if settings.teacher else None
    return Examples(queries, documents, relevant, hard, teacher)


def batch_of(found: Examples, settings: Settings, step: int) -> Batch:
    """The batch of a step, whatever came before it: drawn from the seed and the step alone."""
    random = np.random.default_rng((settings.seed, step))
    queries = random.choice(len(found.queries), size=settings.batch, replace=False)
    own = [int(random.choice(found.relevant[query])) for query in queries]
    others = [
        int(random.choice(found.hard[query])) if len(found.hard[query]) else int(random.integers(len(found.documents)))
        for query in queries
        for _ in range(settings.negatives)
    ]
    documents = np.array([*own, *others], dtype=np.int64)
    allowed = np.stack([~np.isin(documents, found.relevant[query]) for query in queries])
    allowed[np.arange(len(queries)), np.arange(len(queries))] = True
    return Batch(queries, documents, allowed)


def _titles(collection: Collection) -> tuple[list[str], list[str], list[NDArray[np.int64]]]:
    """Titles that ask for their documents, and the documents without them."""
    documents = [_without(text, title) for title, text in zip(collection.titles, collection.texts, strict=True)]
    asking = [
        number
        for number, (title, text) in enumerate(zip(collection.titles, documents, strict=True))
        if len(title.split()) >= _LEAST_WORDS and text
    ]
    return [collection.titles[n] for n in asking], documents, [np.array([n], dtype=np.int64) for n in asking]


def _without(text: str, title: str) -> str:
    """A text without the title at its beginning; its white space may differ."""
    words, head = text.split(), title.split()
    return " ".join(words[len(head) :]) if head and words[: len(head)] == head else text


def _teacher_scores(settings: Settings, queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.float32]:
    from sparsebench.retrieval.encoders import DenseEncoder
    from sparsebench.systems.loading import model_files

    encoder: Any = DenseEncoder(Path(model_files(settings.teacher).folder))
    scores: NDArray[np.float32] = (
        encoder.encode_queries(queries).vectors @ encoder.encode_documents(documents).vectors.T
    )
    return scores
