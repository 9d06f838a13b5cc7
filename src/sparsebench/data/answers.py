"""Whether a short answer is right."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def first_answer(response: str) -> str:
    """The answer that a continuation begins with: its first line, up to the end of the sentence."""
    lines = response.strip().splitlines()
    return re.split(r"[.!?](?:\s|$)", lines[0], maxsplit=1)[0] if lines else ""


def normalise(text: str) -> str:
    """Lower case, without accents, punctuation and a leading "the"; words apart by one space."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(sign for sign in decomposed if not unicodedata.combining(sign)).casefold()
    words = re.sub("['`\u2019]", "", bare)
    return re.sub(r"[\W_]+", " ", words).strip().removeprefix("the ")


def is_right(response: str, accepted: Iterable[str]) -> bool:
    """Whether a response begins with one of the accepted answers, compared word by word after `normalise`."""
    answer = normalise(first_answer(response))
    return any(answer == name or answer.startswith(f"{name} ") for name in map(normalise, accepted) if name)
