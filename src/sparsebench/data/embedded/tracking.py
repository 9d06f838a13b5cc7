"""Variable tracking: chains of assignments hidden in prose, and which variables end up with a value.

A chain begins with `VAR QZKTM = 48213.` and goes on with `VAR LPRAD = VAR QZKTM.`; the question names the value and
asks for all variables that have it. Other chains, with other values, distract. The task follows RULER (Hsieh et al.
2024).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random
from string import ascii_uppercase
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.haystack import prose_around
from sparsebench.errors import InputError

VERSION = "1"

_INTRODUCTION = "Some variables are set in the following text. Keep track of their values.\n\n"
_LETTERS = 5


def rows(
    encode: Encode, *, length: int, n: int, chains: int = 2, hops: int = 2, seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length; arguments as `needles.rows` has them.

    Args:
        encode: Tokens of a text.
        length: Most tokens of context, question and answer together.
        n: Number of samples; the first assignment of the chain that is asked for takes n depths, evenly spaced over
            the first half.
        chains: Chains of assignments; one is asked for.
        hops: Assignments of a variable to another in each chain.
        seed: Another seed gives other samples.
        room: Tokens to keep free for what is generated beyond the answer.

    Raises:
        InputError: A number is less than 1, or the length is too short.
    """
    if min(chains, hops) < 1:
        raise InputError(f"tracking: {chains} chains of {hops} hops", "ask for 1 or more of each")
    makes = [
        partial(_sample, seed, number, depth / 2, chains, hops)
        for number, depth in enumerate(depths("tracking depths", n, seed))
    ]
    return exact_rows(f"tracking/{chains}x{hops}/{length}/{seed}", encode, makes, length=length, room=room)


def _sample(seed: int, number: int, depth: float, chains: int, hops: int, words: int) -> Sample:
    draw = Random(f"tracking {seed} {number}")
    names = _variables(draw, chains * (hops + 1))
    values = [str(value) for value in draw.sample(range(10_000, 100_000), chains)]
    inserts: list[tuple[str, float]] = []
    for chain, value in enumerate(values):
        own = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        first = depth if chain == 0 else draw.random() / 2
        later = sorted(first + (1 - first) * draw.random() for _ in range(hops))
        texts = [f"VAR {own[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(own))]
        inserts += zip(texts, [first, *later], strict=True)
    context = _INTRODUCTION + prose_around(sorted(inserts, key=lambda insert: insert[1]), words, draw.random())
    asked = f"\n\n{hops + 1} variables have the value {values[0]}. They are VAR"
    return Sample(context, asked, tuple(names[: hops + 1]), {"assignments": [text for text, _ in inserts]})


def _variables(draw: Random, count: int) -> list[str]:
    """Distinct names of five capital letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(ascii_uppercase, k=_LETTERS))] = None
    return list(found)
