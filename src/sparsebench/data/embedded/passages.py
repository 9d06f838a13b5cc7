"""Contexts of many passages, as retrieval puts them before a question.

Each passage tells of one company that nobody has heard of; all tell the same kinds of facts, so that the passage must
be found before the fact. Passages have numbers and titles, as in the prompt of a retrieval-augmented generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths, filled
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.words import PEOPLE, coined, things

VERSION = "1"

INTRODUCTION = "Answer the question from the passages."
_KINDS = ("Works", "Brothers", "Trading Company", "Press", "Mills", "Instruments")


@dataclass(frozen=True)
class _Fact:
    """A kind of fact: how a passage tells it, how it is asked for, how the answer begins, and which field ends it."""

    told: str
    question: str
    begun: str
    field: str


_FACTS = (
    _Fact(
        "{name} was founded in {year} by {founder}.",
        "When was {name} founded?",
        "{name} was founded in",
        "year",
    ),
    _Fact(
        "The company has its seat in {town}, where most of its people live.",
        "Where does {name} have its seat?",
        "{name} has its seat in",
        "town",
    ),
    _Fact(
        "It is best known for one product, the {product}.",
        "What is {name} best known for?",
        "{name} is best known for the",
        "product",
    ),
    _Fact("For some years it has been led by {leader}.", "Who leads {name}?", "{name} is led by", "leader"),
)


def rows(encode: Encode, *, length: int, n: int, seed: int = 0, room: int = 0) -> list[dict[str, Any]]:
    """Samples of one length; arguments as `needles.rows` has them.

    The passage that is asked for takes n evenly spaced places, and the kinds of facts take turns.

    Raises:
        InputError: The length is too short, or n is less than 1.
    """
    makes = [partial(_sample, seed, number, depth) for number, depth in enumerate(depths("passages depths", n, seed))]
    return exact_rows(f"passages/{length}/{seed}", encode, makes, length=length, room=room)


def _sample(seed: int, number: int, depth: float, words: int) -> Sample:
    name = f"passages {seed} {number}"
    companies: list[dict[str, str]] = []

    def told() -> Iterator[str]:
        towns = coined(Random(f"{name} towns"), syllables=3)
        products = cycle(things(Random(f"{name} products")))
        for place, word in enumerate(coined(Random(f"{name} companies")), 1):
            companies.append(_company(Random(f"{name} {place}"), word, next(towns), next(products)))
            facts = " ".join(fact.told.format(**companies[-1]) for fact in _FACTS)
            yield f"\n\nPassage {place}. {companies[-1]['name']}\n{facts}"

    text, whole = filled(told(), words, least=2)
    asked = min(int(depth * whole), whole - 1)
    fact, company = _FACTS[number % len(_FACTS)], companies[asked]
    question = f"\n\nQuestion: {fact.question.format(**company)}\nAnswer: {fact.begun.format(**company)}"
    return Sample(INTRODUCTION + text, question, (company[fact.field],), {"passage": asked + 1})


def _company(draw: Random, word: str, town: str, product: str) -> dict[str, str]:
    founder, leader = (f"{given} {next(coined(draw)).capitalize()}" for given in draw.sample(PEOPLE, 2))
    return {
        "name": f"{word.capitalize()} {draw.choice(_KINDS)}",
        "town": town.capitalize(),
        "product": product,
        "year": str(draw.randrange(1700, 2000)),
        "founder": founder,
        "leader": leader,
    }
