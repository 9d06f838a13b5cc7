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
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from sparsebench.data.embedded.prose import sentences
from sparsebench.errors import InputError, UnknownNameError

VERSION = "1"

Encode = Callable[[str], Sequence[int]]

#: Hidden codes, of how many things, and how many of the things are asked about.
KINDS = {"single": (1, 1, 1), "multi-key": (4, 4, 1), "multi-value": (4, 1, 1), "multi-query": (4, 4, 2)}

#: The least share of the stated length that a sample has.
LEAST_SHARE = 0.95

_INTRODUCTION = "Some access codes are hidden in the following text. Remember them.\n\n"
_ROUNDS = 24


@dataclass(frozen=True)
class _Plan:
    """What one sample hides and asks, before it has a length.

    Attributes:
        needles: Hidden sentences with their depths, from 0 (first) to 1 (last).
        asked: The needles that answer the question, as places in `needles`.
        question: What follows the context.
        answers: The codes that are right, in the order in which they are asked for.
        start: Where in the prose the haystack starts, from 0 to 1.
    """

    needles: tuple[tuple[str, float], ...]
    asked: tuple[int, ...]
    question: str
    answers: tuple[str, ...]
    start: float

    @property
    def answer(self) -> str:
        return ", ".join(self.answers)


def rows(encode: Encode, *, length: int, n: int, kind: str = "single", seed: int = 0) -> list[dict[str, Any]]:
    """Samples of one length.

    Args:
        encode: Tokens of a text, as the model will see the prompt (with special tokens if it does).
        length: Most tokens that context, question and answer have together.
        n: Number of samples. The depth of the first needle that is asked for takes n evenly spaced values in [0, 1].
        kind: One of `KINDS`.
        seed: Another seed gives other samples.

    Returns:
        Rows with

        | key | type | meaning |
        | --- | --- | --- |
        | `id` | str | unique: `needles/multi-key/4096/0/17` |
        | `context` | str | the text in which the codes are hidden |
        | `question` | str | follows the context as it stands; the answer follows it after a space |
        | `answers`, `answer` | list, str | the codes asked for, and the same as one text |
        | `needles` | list | the hidden sentences, each of which is in the context once |
        | `depth` | float | share of the context before the first needle that is asked for, by characters |
        | `tokens` | int | tokens of context, question and answer |

    Raises:
        UnknownNameError: No such kind.
        InputError: The length is too short for what is hidden and asked, or n is less than 1.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of needles", kind, KINDS)
    if n < 1:
        raise InputError(f"needles: {n} samples", "ask for 1 or more")
    order = list(range(n))
    random.Random(f"needles depths {kind} {seed}").shuffle(order)
    plans = [_plan(kind, seed, number, (order[number] + 0.5) / n) for number in range(n)]
    return [_row(encode, length, plan, f"{kind}/{length}/{seed}/{number}") for number, plan in enumerate(plans)]


def _plan(kind: str, seed: int, number: int, depth: float) -> _Plan:
    draw = random.Random(f"needles {kind} {seed} {number}")
    hidden, things, asked = KINDS[kind]
    codes = tuple(str(code) for code in draw.sample(range(10_000, 100_000), hidden))
    pairs = zip(draw.sample(_FIRST, things), draw.sample(_SECOND, things), strict=True)
    names = [f"{first} {second}" for first, second in pairs]
    owners = [names[index % things] for index in range(hidden)]
    article = "The" if things == hidden else "One"
    texts = [f"{article} access code of the {owner} is {code}." for owner, code in zip(owners, codes, strict=True)]
    depths = [depth, *(draw.random() for _ in texts[1:])]
    wanted = tuple(index for index, owner in enumerate(owners) if owner in names[:asked])
    return _Plan(
        needles=tuple(zip(texts, depths, strict=True)),
        asked=wanted,
        question=_question(names[:asked], len(wanted)),
        answers=tuple(codes[index] for index in wanted),
        start=draw.random(),
    )


def _question(names: Sequence[str], codes: int) -> str:
    things = " and the ".join(names)
    return (
        f"\n\nThe access code of the {things} is" if codes == 1 else f"\n\nThe {codes} access codes of the {things} are"
    )


def _row(encode: Encode, length: int, plan: _Plan, name: str) -> dict[str, Any]:
    context, tokens = _fit(encode, length, plan)
    needle = plan.needles[plan.asked[0]][0]
    return {
        "id": f"needles/{name}",
        "context": context,
        "question": plan.question,
        "answers": list(plan.answers),
        "answer": plan.answer,
        "needles": [text for text, _ in plan.needles],
        "depth": context.index(needle) / (len(context) - len(needle)),
        "tokens": tokens,
    }


def _fit(encode: Encode, length: int, plan: _Plan) -> tuple[str, int]:
    """The context with as much prose as the length allows, and the tokens of the whole sample.

    Tokens grow almost in proportion to words: the search goes by proportion, between the bounds that it has found.
    """

    def measure(words: int) -> tuple[str, int]:
        context = _context(plan, words)
        return context, len(encode(f"{context}{plan.question} {plan.answer}"))

    best = measure(0)
    fixed = best[1]
    low, high = 0, 2 * length
    words = max(1, (length - fixed) * 2 // 3)
    for _ in range(_ROUNDS):
        if length - best[1] <= max(1, length // 200) or high - low <= 1:
            break
        context, tokens = measure(words)
        if tokens <= length:
            low, best = words, (context, tokens)
        else:
            high = words
        step = (length - tokens) * words // max(1, tokens - fixed)
        words = min(max(words + step, low + 1), high - 1)
    if not LEAST_SHARE * length <= best[1] <= length:
        hint = "ask for a longer prompt"
        raise InputError(f"needles: a sample with {length} tokens cannot be made: {best[1]} are the nearest", hint)
    return best


def _context(plan: _Plan, words: int) -> str:
    """The introduction and so many words of prose, the needles between its sentences."""
    prose = _prose()
    first = prose.starts[int(plan.start * len(prose.starts))]
    total = len(prose.words)
    body = [prose.words[(first + place) % total] for place in range(words)]
    boundaries = sorted((start - first) % total for start in prose.starts)
    inserts: dict[int, list[str]] = defaultdict(list)
    for text, depth in plan.needles:
        turn, rest = divmod(int(depth * words), total)
        inserts[turn * total + boundaries[bisect_right(boundaries, rest) - 1]].append(text)
    places = [*sorted(inserts), words]
    parts = body[: places[0]]
    for place, following in pairwise(places):
        parts += [*inserts[place], *body[place:following]]
    return _INTRODUCTION + " ".join(parts)


@dataclass(frozen=True)
class _Prose:
    """Running prose as words, and where its sentences start."""

    words: tuple[str, ...]
    starts: tuple[int, ...]


@cache
def _prose() -> _Prose:
    """The haystack's prose, without anything that could be taken for a needle."""
    words: list[str] = []
    starts: list[int] = []
    for sentence in sentences("evaluation"):
        if not re.search(r"\d{5}|access code", sentence):
            starts.append(len(words))
            words += sentence.split()
    return _Prose(tuple(words), tuple(starts))


_FIRST = tuple(
    "apple autumn bamboo barley beacon cedar cherry cinder clover copper coral cotton crystal dawn desert ember falcon "
    "feather forest frost garden ginger granite harbour honey island ivory jasmine juniper lemon linen marble meadow "
    "mint mountain north ocean olive pepper pine prairie rain river saffron silver summer thunder velvet walnut "
    "winter".split()
)
_SECOND = tuple(
    "anchor arch balcony barrel basket bell bench boat bridge candle canvas castle chest clock compass cottage cradle "
    "drum engine fence ferry fountain gate goblet hammer kettle ladder lantern library locket loom mill mirror orchard "
    "organ oven piano quilt saddle station studio table temple theatre tower train tunnel violin wagon well".split()
)
