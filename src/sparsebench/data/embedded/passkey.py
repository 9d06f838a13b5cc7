"""A pass key among distractors, in filler that says nothing.

The filler is a few sentences over and over, so that all there is to find stands out; what makes it hard are other
numbers of the same form, with names that come near. The task goes back to Mohtashami and Jaggi (2023).
"""

from __future__ import annotations

import re
from functools import partial
from itertools import cycle
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths, filled
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.errors import InputError

VERSION = "1"

_INTRODUCTION = "There is a pass key in a lot of unimportant text. Find it and remember it.\n\n"
_FILLER = (
    "The road goes up the hill.",
    "A bird sits on the fence.",
    "The wind moves the leaves.",
    "Nothing else happens here.",
    "Then the road goes down again.",
)
_DISTRACTORS = (
    "The phone number of the office is {}.",
    "The last pass key, which is no longer valid, was {}.",
    "The number of the ticket is {}.",
    "The postal code of the village is {}.",
    "The serial number of the lock is {}.",
    "The pass key of the other building was {}.",
)


def rows(
    encode: Encode, *, length: int, n: int, distractors: int = 4, seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length; other arguments as `needles.rows` has them.

    Args:
        encode: Tokens of a text.
        length: Most tokens of context, question and answer together.
        n: Number of samples; the pass key takes n evenly spaced depths.
        distractors: Other numbers; at most six.
        seed: Another seed gives other samples.
        room: Tokens to keep free for what is generated beyond the answer.

    Raises:
        InputError: Too many distractors, or the length is too short.
    """
    if not 0 <= distractors <= len(_DISTRACTORS):
        raise InputError(f"passkey: {distractors} distractors", f"0 to {len(_DISTRACTORS)}")
    makes = [
        partial(_sample, seed, number, depth, distractors)
        for number, depth in enumerate(depths("passkey depths", n, seed))
    ]
    return exact_rows(f"passkey/{distractors}/{length}/{seed}", encode, makes, length=length, room=room)


def _sample(seed: int, number: int, depth: float, distractors: int, words: int) -> Sample:
    draw = Random(f"passkey {seed} {number}")
    key, *others = (str(code) for code in draw.sample(range(10_000, 100_000), 1 + distractors))
    texts = [f"The pass key is {key}. Remember it: {key} is the pass key."]
    texts += [text.format(code) for text, code in zip(draw.sample(_DISTRACTORS, distractors), others, strict=True)]
    places = [depth, *(draw.random() for _ in others)]
    text, count = filled((f" {sentence}" for sentence in cycle(_FILLER)), words, least=1)
    ends = [end.end() for end in re.finditer(r"\.(?= )", text)] or [0]
    for inserted, place in sorted(zip(texts, places, strict=True), key=lambda each: -each[1]):
        end = ends[min(int(place * count), len(ends) - 1)]
        text = f"{text[:end]} {inserted}{text[end:]}"
    return Sample(
        _INTRODUCTION + text.strip(),
        "\n\nWhat is the pass key? The pass key is",
        (key,),
        {"distractors": others, "depth": depth},
    )
