"""Whether a short answer is right."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def first_line(response: str) -> str:
    """The first line of a continuation, empty lines apart."""
    lines = response.strip().splitlines()
    return lines[0] if lines else ""


def first_answer(response: str) -> str:
    """The answer that a continuation begins with: its first line, up to the end of the sentence."""
    return re.split(r"[.!?](?:\s|$)", first_line(response), maxsplit=1)[0]


def normalise(text: str) -> str:
    """Lower case, without accents, punctuation and a leading "the"; words apart by one space."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(sign for sign in decomposed if not unicodedata.combining(sign)).casefold()
    words = re.sub("['`\u2019]", "", bare)
    return re.sub(r"[\W_]+", " ", words).strip().removeprefix("the ")


def is_right(response: str, accepted: Iterable[str]) -> bool:
    """Whether the first line of a response begins with an accepted answer, word by word after `normalise`."""
    line = normalise(first_line(response))
    return any(line == name or line.startswith(f"{name} ") for name in map(normalise, accepted) if name)
