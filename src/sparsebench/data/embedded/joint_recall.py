"""Joint recall: the value of a key in a given context, where every key has other values in other contexts.

`In the copper tower, the code of jasmine is 48213.` To answer, place and key must both be right; either alone leads to
several values. Lines of one place stand together. The question is that of joint recall in studies of sparse attention
and state-space layers (Zhan et al. 2025, HAX).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, codes, depths, filled
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.words import FIRST, things
from sparsebench.errors import InputError

VERSION = "1"

_INTRODUCTION = "Each place has a code for each of its keys.\n"


def rows(encode: Encode, *, length: int, n: int, keys: int = 4, seed: int = 0, room: int = 0) -> list[dict[str, Any]]:
    """Samples of one length; other arguments as `needles.rows` has them.

    Args:
        encode: Tokens of a text.
        length: Most tokens of context, question and answer together.
        n: Number of samples; the line that is asked for takes n evenly spaced depths.
        keys: Keys, each of which every place has.
        seed: Another seed gives other samples.
        room: Tokens to keep free for what is generated beyond the answer.

    Raises:
        InputError: Fewer than 2 keys or more than there are words, or the length is too short.
    """
    if not 2 <= keys <= len(FIRST):
        raise InputError(f"joint-recall: {keys} keys", f"2 to {len(FIRST)}")
    makes = [
        partial(_sample, seed, number, depth, keys)
        for number, depth in enumerate(depths("joint-recall depths", n, seed))
    ]
    return exact_rows(f"joint-recall/{keys}/{length}/{seed}", encode, makes, length=length, room=room)


def _sample(seed: int, number: int, depth: float, keys: int, words: int) -> Sample:
    name = f"joint recall {seed} {number}"
    names = Random(name).sample(FIRST, keys)
    lines: list[tuple[str, str, str]] = []

    def told() -> Iterator[str]:
        values = codes(Random(f"{name} codes"))
        for place in things(Random(f"{name} places")):
            for key in names:
                lines.append((place, key, next(values)))
                yield "\nIn the {}, the code of {} is {}.".format(*lines[-1])

    text, whole = filled(told(), words, least=2 * keys)  # two places at least: otherwise the key alone would do
    place, key, value = lines[min(int(depth * whole), whole - 1)]
    return Sample(_INTRODUCTION + text, f"\n\nIn the {place}, the code of {key} is", (value,), {"depth": depth})
