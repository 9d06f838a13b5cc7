"""Near-duplicate text, by runs of words."""

from __future__ import annotations

import re

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str, length: int = 5) -> Shingles:
    """The runs of `length` words in a text, in lower case; of a shorter text, all its words as one run."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[start : start + length]) for start in range(max(1, len(words) - length + 1)))


class Novelty:
    """Tells text that was mostly there before.

    Args:
        share: A text is old when more than this share of its runs of words came in earlier ones.
        length: Words in a run.
    """

    def __init__(self, share: float = 0.5, length: int = 5) -> None:
        self._share = share
        self._length = length
        self._seen: set[tuple[str, ...]] = set()

    def is_new(self, text: str) -> bool:
        """Whether a text is new; a new one is remembered."""
        runs = shingles(text, self._length)
        if len(runs & self._seen) > self._share * len(runs):
            return False
        self._seen |= runs
        return True
