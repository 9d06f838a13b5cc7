"""Running prose to hide things in: sentences of the `evaluation` split, repeated where more is wanted than there is."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from sparsebench.data.embedded.prose import sentences

_HIDDEN = re.compile(r"\d{5}|access code|pass key|\bVAR\b")
"""What could be taken for something hidden: the prose has none of it."""


def prose_around(inserts: Sequence[tuple[str, float]], words: int, start: float) -> str:
    """So many words of prose, with sentences of one's own between its sentences.

    Args:
        inserts: Sentences with their depths, from 0 (first) to 1 (last).
        words: Words of prose.
        start: Where in the prose to begin, from 0 to 1.
    """
    prose = _prose()
    first = prose.starts[int(start * len(prose.starts))]
    total = len(prose.words)
    body = [prose.words[(first + place) % total] for place in range(words)]
    boundaries = sorted((begin - first) % total for begin in prose.starts)
    by_place: dict[int, list[str]] = defaultdict(list)
    for text, depth in inserts:
        turn, rest = divmod(int(depth * words), total)
        by_place[turn * total + boundaries[bisect_right(boundaries, rest) - 1]].append(text)
    places = [*sorted(by_place), words]
    parts = body[: places[0]]
    for place, following in pairwise(places):
        parts += [*by_place[place], *body[place:following]]
    return " ".join(parts)


@dataclass(frozen=True)
class _Prose:
    """Running prose as words, and where its sentences start."""

    words: tuple[str, ...]
    starts: tuple[int, ...]


@cache
def _prose() -> _Prose:
    words: list[str] = []
    starts: list[int] = []
    for sentence in sentences("evaluation"):
        if not _HIDDEN.search(sentence):
            starts.append(len(words))
            words += sentence.split()
    return _Prose(tuple(words), tuple(starts))
