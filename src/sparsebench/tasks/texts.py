"""Builders of running text: halves of a collection that do not meet, and openings of documents to be continued."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.data.sources import Resolved

Row = dict[str, Any]


def half(
    resolved: Resolved | None, tokenizer: Any, part: Literal["calibration", "evaluation"] = "evaluation"
) -> list[Row]:
    """Documents of one half, by the hash of their text: what calibrates is not what is evaluated."""
    if part not in ("calibration", "evaluation"):
        raise InputError(f"half {part!r}", "it is calibration or evaluation")
    rows = _documents(resolved)
    return [row for row in rows if _second(str(row["text"])) == (part == "evaluation")]


def openings(resolved: Resolved | None, tokenizer: Any, words: int = 96) -> list[Row]:
    """The first words of every document that has twice as many, as prompts to be continued."""
    found = []
    for number, row in enumerate(_documents(resolved)):
        split = str(row["text"]).split()
        if len(split) >= 2 * words:
            found.append({"id": str(number), "prompt": " ".join(split[:words]), "target": ""})
    return found


def _documents(resolved: Resolved | None) -> list[Row]:
    if resolved is None:
        raise InputError("this builder reads data", "give `data:` in the task")
    return resolved.rows()


def _second(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1
