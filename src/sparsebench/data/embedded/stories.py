"""Stories in chapters: what happened in one of them, and what happened before something else did.

| kind | asked | to answer |
| --- | --- | --- |
| `retrieval` | where someone travelled in chapter k | find the chapter |
| `multi-hop` | what someone bought just before a thing | find the chapter of that thing, then the one before |

Every chapter tells of one traveller: a journey, a purchase, a meeting, the weather. Nothing marks what will be asked.
The tasks are of the kind of The Sparse Frontier's story tasks (Nawrot et al. 2025); texts and plot are our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths, filled
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.words import PEOPLE, coined, things
from sparsebench.errors import UnknownNameError

VERSION = "1"

KINDS = ("retrieval", "multi-hop")

_TRAVELLED = (
    "{hero} travelled to {town} {by}.",
    "This time {hero} went to {town} {by}.",
    "{hero} set out {by} and came to {town}.",
)
_BOUGHT = (
    "There {hero} bought the {thing} from a {seller}.",
    "A {seller} had many things to sell, and {hero} bought the {thing}.",
    "At the market {hero} bought the {thing}, which a {seller} had brought.",
)
_MET = (
    "In the evening {hero} met {friend}, and they spoke about {topic}.",
    "{friend} was there too, and told {hero} all about {topic}.",
    "Over supper {hero} and {friend} could not agree about {topic}.",
)
_WEATHER = (
    "It rained until the morning, and the streets were empty.",
    "The night was clear and cold, with a wind from the sea.",
    "It was so warm that nobody wanted to sleep.",
    "Fog came up from the valley, and every sound was far away.",
)
_BY = ("by train", "by boat", "on foot", "by bicycle", "in an old bus", "on the back of a cart")
_SELLERS = ("baker", "farmer", "sailor", "teacher", "tailor", "miller", "nurse", "carpenter")
_TOPICS = (
    "the harvest",
    "old songs",
    "the price of bread",
    "the coming elections",
    "their schooldays",
    "the new bridge",
)


def rows(
    encode: Encode, *, length: int, n: int, kind: str = "retrieval", seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length, of one of `KINDS`; other arguments as `needles.rows` has them.

    Raises:
        UnknownNameError: No such kind.
        InputError: n is less than 1, or the length is too short.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of stories", kind, KINDS)
    makes = [
        partial(_sample, kind, seed, number, depth)
        for number, depth in enumerate(depths(f"stories {kind} depths", n, seed))
    ]
    return exact_rows(f"stories/{kind}/{length}/{seed}", encode, makes, length=length, room=room)


def _sample(kind: str, seed: int, number: int, depth: float, words: int) -> Sample:
    name = f"stories {kind} {seed} {number}"
    hero, *friends = Random(name).sample(PEOPLE, len(PEOPLE))
    visited: list[tuple[str, str]] = []

    def told() -> Iterator[str]:
        towns = coined(Random(f"{name} towns"))
        for chapter, thing in enumerate(things(Random(f"{name} things")), 1):
            visited.append((next(towns).capitalize(), thing))
            draw = Random(f"{name} {chapter}")
            text = " ".join(_chapter(draw, hero, *visited[-1], draw.choice(friends)))
            yield f"\n\nChapter {chapter}. {text}"

    text, whole = filled(told(), words, least=2)
    context = f"The travels of {hero}{text}"
    if kind == "retrieval":
        place = min(int(depth * whole), whole - 1)
        question = f"\n\nIn chapter {place + 1}, {hero} travelled to"
        return Sample(context, question, (visited[place][0],), {"chapter": place + 1})
    place = 1 + min(int(depth * (whole - 1)), whole - 2)
    question = f"\n\nThe last thing that {hero} bought before the {visited[place][1]} was the"
    return Sample(context, question, (visited[place - 1][1],), {"chapter": place})


def _chapter(draw: Random, hero: str, town: str, thing: str, friend: str) -> list[str]:
    """The sentences of a chapter, in the order in which things happened."""
    fields = {
        "hero": hero,
        "town": town,
        "thing": thing,
        "friend": friend,
        "by": draw.choice(_BY),
        "seller": draw.choice(_SELLERS),
        "topic": draw.choice(_TOPICS),
    }
    return [draw.choice(forms).format(**fields) for forms in (_TRAVELLED, _BOUGHT, _MET, _WEATHER)]
