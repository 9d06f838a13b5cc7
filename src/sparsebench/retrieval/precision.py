"""Lexical precision, made from any collection: queries that only exact words answer.

A retriever that matches meanings may pass by the document that has the very words. Two kinds of queries ask for it: a
few words that together stand in few documents (`keywords`), and a run of words out of a document (`passages`). Every
document that has the words is relevant, and no other.

Source: LexSemBridge, 2025, which asks for keywords and for parts of passages; the queries here are drawn anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.collection import Collection

_WORD = re.compile(r"\w\w+")
_MOST = 10
"""Documents that may answer a query of keywords."""
_TRIES = 50
"""Draws for each query that is wanted, at most."""


def precision_collection(
    collection: Collection, kind: str, *, queries: int = 200, words: int | None = None, seed: int = 0
) -> Collection:
    """The same documents, asked by their own words.

    Args:
        collection: Where documents come from; its queries and judgements are not used.
        kind: `keywords` or `passages`.
        queries: How many queries.
        words: Words of a query: 2 keywords, 12 of a passage when not given.
        seed: Of the draws.

    Raises:
        UnknownNameError: There is no such kind.
        InputError: The documents give fewer queries.
    """
    if kind not in _KINDS:
        raise UnknownNameError("kind of precision query", kind, _KINDS)
    draw, usual = _KINDS[kind]
    texts = [_WORD.findall(document.lower()) for document in collection.documents()]
    found = draw(texts, queries, words or usual, np.random.default_rng(seed))
    if len(found) < queries:
        raise InputError(
            f"{collection.name} gives {len(found)} queries of {words or usual} words, {queries} are asked for",
            "ask for fewer queries, or for other words",
        )
    asked = {f"{kind}-{number:05d}": query for number, query in enumerate(found)}
    rows = zip(collection.doc_ids, collection.titles, collection.texts, strict=True)
    return Collection.from_dicts(
        collection.name,
        {doc: {"title": title, "text": text} for doc, title, text in rows},
        asked,
        {qid: {collection.doc_ids[doc]: 1 for doc in found[query]} for qid, query in asked.items()},
        split=kind,
        field_policy=collection.field_policy,
        source=collection.source,
    )


def _keywords(
    texts: Sequence[Sequence[str]], count: int, words: int, random: np.random.Generator
) -> dict[str, list[int]]:
    """Queries of words that a document has, each rarer than in a tenth of the documents, with all that have them."""
    having: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        for word in text:
            having[word].add(number)
    rare = max(2, len(texts) // 10)
    found: dict[str, list[int]] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        text = texts[int(random.integers(len(texts)))]
        known = sorted({word for word in text if len(having[word]) <= rare and not word.isdigit()})
        if len(known) < words:
            continue
        chosen = [known[place] for place in sorted(random.choice(len(known), size=words, replace=False))]
        answers = set.intersection(*(having[word] for word in chosen))
        if len(answers) <= _MOST:
            found.setdefault(" ".join(chosen), sorted(answers))
    return found


def _passages(
    texts: Sequence[Sequence[str]], count: int, words: int, random: np.random.Generator
) -> dict[str, list[int]]:
    """Runs of words out of documents, with all documents that have the run."""
    joined = [f" {' '.join(text)} " for text in texts]
    found: dict[str, list[int]] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        text = texts[int(random.integers(len(texts)))]
        if len(text) < 2 * words:
            continue
        start = int(random.integers(len(text) - words + 1))
        query = " ".join(text[start : start + words])
        if query not in found:
            found[query] = [number for number, document in enumerate(joined) if f" {query} " in document]
    return found


_Draw = Callable[[Sequence[Sequence[str]], int, int, np.random.Generator], dict[str, list[int]]]
_KINDS: dict[str, tuple[_Draw, int]] = {"keywords": (_keywords, 2), "passages": (_passages, 12)}
