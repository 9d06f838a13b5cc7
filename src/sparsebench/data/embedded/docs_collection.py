"""A known-item retrieval collection from the standard library's documentation.

A docstring begins with a summary. The summary becomes the query, and the rest of the docstring the document that it has
to find among the others: the same thing described twice, in other words. The thing's own name is taken out of both, and
documents have no titles, so that a name does not give the answer away. Docstrings that mostly repeat an earlier one are
left out: a query has one right answer. The collection depends on the version of Python.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from sparsebench.data.embedded.docstrings import Docstring, docstrings
from sparsebench.data.embedded.shingles import Novelty

VERSION = "1"

_DOCUMENT_WORDS = (40, 150)
_QUERY_WORDS = (5, 30)
_DOCUMENTS = 800
_QUERIES = 400


@dataclass(frozen=True)
class DocumentationCollection:
    """A collection in BEIR form.

    Attributes:
        corpus: Title (empty) and text by document id.
        queries: Text by query id.
        qrels: Relevance by query id and document id; each query has one relevant document.
    """

    corpus: dict[str, dict[str, str]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def collection() -> DocumentationCollection:
    """The collection; documents are in the order of their ids.

    Raises:
        MissingError: This Python has no sources of its standard library.
    """
    entries = rows()
    asked = [entry for entry in entries if entry["query"]]
    return DocumentationCollection(
        corpus={entry["id"]: {"title": "", "text": entry["text"]} for entry in entries},
        queries={f"q/{entry['id']}": entry["query"] for entry in asked},
        qrels={f"q/{entry['id']}": {entry["id"]: 1} for entry in asked},
    )


def rows() -> list[dict[str, Any]]:
    """The documents with the queries that ask for them.

    Returns:
        Rows with `id` (qualified name), `text`, and `query` (None for documents that nobody asks for).

    Raises:
        MissingError: This Python has no sources of its standard library.
    """
    return [dict(row) for row in _rows()]


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    new_text, new_query = Novelty(share=0.3), Novelty(share=0.3, length=3)
    found: list[dict[str, Any]] = []
    names = set()
    for entry in docstrings():
        if any(part.startswith("_") for part in entry.name.split(".")) or entry.name in names:
            continue
        query, text = masked_parts(entry)
        if _is_between(query, _QUERY_WORDS) and _is_between(text, _DOCUMENT_WORDS):
            if new_text.is_new(text) and new_query.is_new(query):
                names.add(entry.name)
                found.append({"id": entry.name, "text": text, "query": query})
    drawn = sorted(found, key=lambda row: _draw(row["id"]))[:_DOCUMENTS]
    for row in drawn[_QUERIES:]:
        row["query"] = None
    return tuple(sorted(drawn, key=lambda row: row["id"]))


def masked_parts(entry: Docstring) -> tuple[str, str]:
    """The summary of a docstring and the rest of it, without the name of what it describes.

    The rest is cut at the last end of a sentence within the longest document.
    """
    own = re.escape(entry.name.rpartition(".")[2])
    # A name that is a plain word ("mean", "run") is only taken out where it is called.
    called = r"\([^()]*\)" if re.fullmatch("[a-z]+", own) else r"(?!\w)(?:\([^()]*\))?"
    text = re.sub(rf"(?<!\w){own}{called}", "it", entry.text.partition(">>>")[0])
    first, _, rest = text.partition("\n\n")
    summary, *more = re.split(r"(?<=[a-z)\"'][.!?])\s+(?=[A-Z])", " ".join(first.split()), maxsplit=1)
    words = [word for word in " ".join([*more, rest]).split() if re.search(r"\w", word)]
    if len(words) <= _DOCUMENT_WORDS[1]:
        return summary, " ".join(words)
    cut = " ".join(words[: _DOCUMENT_WORDS[1]])
    end = max(cut.rfind(sign) for sign in (". ", ".) ", ": "))
    return summary, cut[: end + 1] if end > 0 else cut


def _is_between(text: str, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= len(text.split()) <= bounds[1]


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
