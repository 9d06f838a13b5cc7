"""Samples of an exact length: as much text as a stated number of tokens has room for.

A family of tasks says how a sample of a given size looks; here its size is found. Context, question and answer together
have at most the stated number of tokens. A model may have no positions for what it generates beyond them: with `room`
context and question leave so many tokens free, as far as they keep 93 % of the length themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from sparsebench.errors import InputError

Encode = Callable[[str], Sequence[int]]

#: The least share of the tokens there are that a sample has.
LEAST_SHARE = 0.95
#: The least share of the length that room leaves to context and question.
LEAST_PROMPT = 0.93
_ROUNDS = 24
_PROBE = 48
"""Size of the first try."""


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        context: What is read before the question.
        question: What follows the context as it stands; the answer follows it after a space.
        answers: What is right, each part by itself.
        facts: Further fields of its row.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """All answers as one text."""
        return ", ".join(self.answers)

    @property
    def text(self) -> str:
        """Context, question and answer."""
        return f"{self.context}{self.question} {self.answer}"

    def row(self, name: str, tokens: int) -> dict[str, Any]:
        """The sample as a row of a task.

        | key | type | meaning |
        | --- | --- | --- |
        | `id` | str | unique: `needles/multi-key/4096/0/17` |
        | `context`, `question` | str | as above |
        | `answers`, `answer` | list, str | the right parts, and the same as one text |
        | `tokens` | int | tokens of context, question and answer |
        """
        answers = {"answers": list(self.answers), "answer": self.answer}
        return {
            "id": name,
            "context": self.context,
            "question": self.question,
            **answers,
            **self.facts,
            "tokens": tokens,
        }


Make = Callable[[int], Sample]
"""A sample of a size, in words; its tokens grow with the size, almost in proportion."""


def rows(name: str, encode: Encode, makes: Sequence[Make], *, length: int, room: int = 0) -> list[dict[str, Any]]:
    """One row for each sample, of the stated length.

    Args:
        name: What is made, with kind, length and seed: `needles/multi-key/4096/0`.
        encode: Tokens of a text, as the model will see the prompt (with special tokens if it does).
        makes: The samples, before they have a length.
        length: Most tokens of context, question and answer together.
        room: Tokens to keep free for what is generated beyond the answer.

    Raises:
        InputError: The length is too short for what a sample holds.
    """
    encode("")  # a tokenizer settles how it cuts and pads at its first call
    with ThreadPoolExecutor(max_workers=_threads()) as pool:  # tokenizers leave the interpreter to others
        found = list(pool.map(lambda make: fitted(encode, make, length, room, name), makes))
    return [sample.row(f"{name}/{number}", tokens) for number, (sample, tokens) in enumerate(found)]


def _threads() -> int:
    """Cores that this process may use; a worker has its share."""
    limit = os.environ.get("RAYON_NUM_THREADS", "")
    cores = int(limit) if limit.isdecimal() else os.cpu_count() or 1
    return max(1, min(cores, 4))  # the interpreter takes its turns too, and more threads only wait for it


def fitted(encode: Encode, make: Make, length: int, room: int, name: str) -> tuple[Sample, int]:
    """The largest sample that has at most so many tokens, and its tokens.

    The search goes by proportion, within the bounds that it has found.

    Raises:
        InputError: None has at least 95 % of them.
    """

    def measure(size: int) -> tuple[Sample, int]:
        sample = make(size)
        return sample, len(encode(sample.text))

    best = measure(0)
    fixed = best[1]
    most = length if not room else _most(length, room, fixed - len(encode(best[0].context + best[0].question)))
    low, high, over = 0, 2 * most, 0
    size = _PROBE
    for _ in range(_ROUNDS):
        if most - best[1] <= max(1, most // 200) or high - low <= 1:
            break
        sample, tokens = measure(size)
        if tokens <= most:
            low, best = size, (sample, tokens)
        else:
            high, over = size, tokens
        if over:
            size = low + (most - best[1]) * (high - low) // (over - best[1])
        else:  # what a sample holds in any case has its words too
            size = size * (most - fixed) // (tokens - fixed) if tokens > fixed else 4 * size
        size = min(max(size, low + 1), high - 1)
    if not LEAST_SHARE * most <= best[1] <= most:
        hint = "ask for a longer prompt"
        kind = name.partition("/")[0]
        raise InputError(f"{kind}: a sample with {length} tokens cannot be made: {best[1]} are the nearest", hint)
    return best


def _most(length: int, room: int, answer: int) -> int:
    """Tokens of a sample whose answer has so many, and is part of what the room is for."""
    return min(length, max(int(LEAST_PROMPT * length), length - room) + answer)


def filled(parts: Iterator[str], words: int, least: int) -> tuple[str, int]:
    """So many words of parts, one after the other, the last one cut short, and how many parts are whole.

    Args:
        parts: More than enough of them.
        words: Words of the text.
        least: Parts that are whole in any case.
    """
    text, whole = "", 0
    for part in parts:
        count = len(part.split())
        if whole >= least and count > words:
            ends = [word.end() for word in islice(re.finditer(r"\S+", part), max(words, 0))]
            return text + part[: ends[-1] if ends else 0], whole
        text, whole, words = text + part, whole + 1, words - count
    return text, whole


def depths(name: str, n: int, seed: int) -> list[float]:
    """A depth for each of n samples: evenly spaced values in [0, 1], in a random order.

    Raises:
        InputError: n is less than 1.
    """
    if n < 1:
        raise InputError(f"{name.partition(' ')[0]}: {n} samples", "ask for 1 or more")
    order = list(range(n))
    Random(f"{name} {seed}").shuffle(order)
    return [(place + 0.5) / n for place in order]


def codes(draw: Random) -> Iterator[str]:
    """Distinct numbers of five digits, up to 90,000 of them; how many are taken changes none of them."""
    seen: set[int] = set()
    while len(seen) < 90_000:
        code = draw.randrange(10_000, 100_000)
        if code not in seen:
            seen.add(code)
            yield str(code)
