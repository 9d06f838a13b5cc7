"""Plain words to make things of, and names that nobody has."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

FIRST = tuple(
    "apple autumn bamboo barley beacon cedar cherry cinder clover copper coral cotton crystal dawn desert ember falcon "
    "feather forest frost garden ginger granite harbour honey island ivory jasmine juniper lemon linen marble meadow "
    "mint mountain north ocean olive pepper pine prairie rain river saffron silver summer thunder velvet walnut "
    "winter".split()
)
SECOND = tuple(
    "anchor arch balcony barrel basket bell bench boat bridge candle canvas castle chest clock compass cottage cradle "
    "drum engine fence ferry fountain gate goblet hammer kettle ladder lantern library locket loom mill mirror orchard "
    "organ oven piano quilt saddle station studio table temple theatre tower train tunnel violin wagon well".split()
)
PEOPLE = tuple(
    "Adele Bruno Clara Dario Elena Felix Greta Hugo Irene Jonas Karin Lucas Marta Nadia Oscar Paula Quentin Rosa Simon "
    "Tessa Ugo Vera Wanda Xavier Yvonne Zeno".split()
)
"""Given names, none of which is a word."""

_ONSETS = "b br d dr f fl g gr h j k kr l m n p pl r s st t tr v z".split()
_VOWELS = "a e i o u".split()
_CODAS = "l m n r s t x".split()


def things(draw: Random) -> Iterator[str]:
    """Distinct things of two words, such as `copper lantern`; how many are taken changes none of them."""
    pairs = [f"{first} {second}" for first in FIRST for second in SECOND]
    draw.shuffle(pairs)
    yield from pairs


def coined(draw: Random, syllables: int = 2) -> Iterator[str]:
    """Distinct coined words, such as `tavon`; how many are taken changes none of them."""
    seen: set[str] = set()
    while True:
        parts = [draw.choice(_ONSETS) + draw.choice(_VOWELS) for _ in range(syllables)]
        word = "".join(parts) + draw.choice(_CODAS)
        if word not in seen:
            seen.add(word)
            yield word
