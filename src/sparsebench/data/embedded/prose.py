"""Long English prose from the standard library: paragraphs of its docstrings and of the language reference.

A document is one module or one topic of the reference; its text are the paragraphs that read as prose, in order. Code,
tables, headings and lists of options are left out, and so is a paragraph that was mostly said before. Documents are
split into `calibration` and `evaluation` by the hash of their id, so that a document is in one of them whatever else
there is. The documents depend on the version of Python; their content hash says which they are.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from functools import cache
from typing import Any, Literal

from sparsebench.data.embedded.docstrings import docstrings, topics
from sparsebench.data.embedded.shingles import Novelty

VERSION = "1"

Split = Literal["calibration", "evaluation"]

# Bullets, numbered items, and the headed lists of arguments in docstrings.
_LIST = re.compile(r"^\s*(?:[-*+] |\(?\d+[.)] |(?:Args|Arguments|Returns?|Raises|Note|Parameters):)", re.MULTILINE)

_LEAST_CHARACTERS = 100
_LEAST_LETTERS = 0.94


def rows(split: Split | None = None) -> list[dict[str, Any]]:
    """The documents, by id.

    Args:
        split: Only the documents of this split.

    Returns:
        Rows with `id` (`topic/with`, `module/asyncio.streams`), `text` (paragraphs apart by an empty line), `split`.

    Raises:
        MissingError: This Python has no sources of its standard library.
    """
    return [dict(row) for row in _documents() if split is None or row["split"] == split]


def sentences(split: Split | None = None) -> list[str]:
    """The sentences of the documents, in order."""
    return [
        sentence
        for row in rows(split)
        for paragraph in row["text"].split("\n\n")
        for sentence in re.split(r"(?<=[a-z)\"][.!?]) (?=[A-Z])", paragraph)
    ]


@cache
def _documents() -> tuple[dict[str, Any], ...]:
    parts: dict[str, list[str]] = defaultdict(list)
    for topic, text in topics().items():
        parts[f"topic/{topic}"] += paragraphs(text)
    for entry in docstrings():
        parts[f"module/{entry.module}"] += paragraphs(entry.text)
    novelty = Novelty()
    documents = []
    for document, found in sorted(parts.items()):
        if text := "\n\n".join(paragraph for paragraph in found if novelty.is_new(paragraph)):
            documents.append({"id": document, "text": text, "split": split_of(document)})
    return tuple(documents)


def split_of(document: str) -> Split:
    """The split of a document, by its id alone."""
    return "calibration" if hashlib.sha256(document.encode()).digest()[0] % 2 else "evaluation"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text that read as prose, each on one line, without the marks of reStructuredText."""
    blocks = [block for block in re.split(r"\n\s*\n", text) if not _LIST.search(block)]
    return [line for line in map(_line, blocks) if _reads_as_prose(line)]


def _line(block: str) -> str:
    text = " ".join(block.split())
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    return re.sub(r"``([^`]*)``|`([^`']*)['`]|\*{1,2}(\w[^*]*)\*{1,2}", r"\1\2\3", text)


def _reads_as_prose(line: str) -> bool:
    plain = sum(sign.isalpha() or sign == " " for sign in line)
    return (
        len(line) >= _LEAST_CHARACTERS
        and plain >= _LEAST_LETTERS * len(line)
        and line[0].isupper()
        and line[-1] in ".!?"
        and not re.search(r">>>|::|__|\\|[{}<>|=]|\.\.\.|https?:", line)
    )
