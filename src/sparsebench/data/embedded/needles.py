"""Retrieval from long prompts of a stated length: access codes hidden in prose (needles in a haystack).

| kind | hidden | asked |
| --- | --- | --- |
| `single` | one code | it |
| `multi-key` | four codes of different things | one of them |
| `multi-value` | four codes of one thing | all four |
| `multi-query` | four codes of different things | two of them |

The kinds follow RULER (Hsieh et al. 2024, section 3). The haystack is running prose of the `evaluation` split, which is
repeated where a prompt is longer than it. Prompts are made for a tokenizer: context, question and answer together have
at most the stated number of tokens, and at least 95 % of it. What is hidden, asked and where the haystack starts
depends on kind, seed and number of the sample, and not on the length: samples of different lengths are pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.haystack import prose_around
from sparsebench.data.embedded.words import FIRST, SECOND
from sparsebench.errors import UnknownNameError

VERSION = "1"

#: Hidden codes, of how many things, and how many of the things are asked about.
KINDS = {"single": (1, 1, 1), "multi-key": (4, 4, 1), "multi-value": (4, 1, 1), "multi-query": (4, 4, 2)}

INTRODUCTION = "Some access codes are hidden in the following text. Remember them.\n\n"


@dataclass(frozen=True)
class Hidden:
    """What one sample hides and asks, before it has a length.

    Attributes:
        needles: Hidden sentences with their depths, from 0 (first) to 1 (last).
        asked: The needles that answer the question, as places in `needles`.
        names: The things whose codes are hidden; those that are asked for come first.
        codes: The code of each needle.
        start: Where in the prose the haystack starts, from 0 to 1.
    """

    needles: tuple[tuple[str, float], ...]
    asked: tuple[int, ...]
    names: tuple[str, ...]
    codes: tuple[str, ...]
    start: float

    def context(self, words: int) -> str:
        """The introduction and so many words of prose, the needles between its sentences."""
        return INTRODUCTION + prose_around(self.needles, words, self.start)


def rows(
    encode: Encode, *, length: int, n: int, kind: str = "single", seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length.

    Args:
        encode: Tokens of a text, as the model will see the prompt (with special tokens if it does).
        length: Most tokens that context, question and answer have together.
        n: Number of samples. The depth of the first needle that is asked for takes n evenly spaced values in [0, 1].
        kind: One of `KINDS`.
        seed: Another seed gives other samples.
        room: Tokens to keep free for what is generated beyond the answer.

    Returns:
        Rows as `exact_length.Sample.row` has them, with `needles` (the hidden sentences, each of which is in the
        context once) and `depth` (share of the context before the first needle that is asked for, by characters).

    Raises:
        UnknownNameError: No such kind.
        InputError: The length is too short for what is hidden and asked, or n is less than 1.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of needles", kind, KINDS)
    hidden = [hide(kind, seed, number, depth) for number, depth in enumerate(depths(f"needles depths {kind}", n, seed))]
    asked = KINDS[kind][2]
    makes = [partial(_sample, each, asked) for each in hidden]
    return exact_rows(f"needles/{kind}/{length}/{seed}", encode, makes, length=length, room=room)


def hide(kind: str, seed: int, number: int, depth: float) -> Hidden:
    """What sample `number` hides, the first needle that is asked for at that depth."""
    draw = random.Random(f"needles {kind} {seed} {number}")
    hidden, things, asked = KINDS[kind]
    codes = tuple(str(code) for code in draw.sample(range(10_000, 100_000), hidden))
    pairs = zip(draw.sample(FIRST, things), draw.sample(SECOND, things), strict=True)
    names = tuple(f"{first} {second}" for first, second in pairs)
    owners = [names[index % things] for index in range(hidden)]
    article = "The" if things == hidden else "One"
    texts = [f"{article} access code of the {owner} is {code}." for owner, code in zip(owners, codes, strict=True)]
    places = [depth, *(draw.random() for _ in texts[1:])]
    return Hidden(
        needles=tuple(zip(texts, places, strict=True)),
        asked=tuple(index for index, owner in enumerate(owners) if owner in names[:asked]),
        names=names,
        codes=codes,
        start=draw.random(),
    )


def question(names: Sequence[str], codes: int) -> str:
    """What asks for the codes of some things."""
    things = " and the ".join(names)
    return (
        f"\n\nThe access code of the {things} is" if codes == 1 else f"\n\nThe {codes} access codes of the {things} are"
    )


def _sample(hidden: Hidden, asked: int, words: int) -> Sample:
    context = hidden.context(words)
    needle = hidden.needles[hidden.asked[0]][0]
    return Sample(
        context,
        question(hidden.names[:asked], len(hidden.asked)),
        tuple(hidden.codes[index] for index in hidden.asked),
        {
            "needles": [text for text, _ in hidden.needles],
            "depth": context.index(needle) / (len(context) - len(needle)),
        },
    )
