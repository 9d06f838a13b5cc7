"""Relations between well-known things: who asks what, and which answers are right.

A fact is left out where the packages disagree, where it was true only once, where it is disputed, or where the question
holds the answer. The reasons stand beside the sets below.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparsebench.data.embedded.elements import elements
from sparsebench.data.embedded.geography import City, Country, cities, countries, fold, states


@dataclass(frozen=True)
class Fact:
    """One fact: what is asked about, the answer, and other answers that are as right."""

    subject: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    Attributes:
        name: Identifier.
        template: A sentence that ends where the answer begins, with `{}` for the subject.
        limit: How many facts are asked about, the best known first.
        facts: Makes them, the best known first.
    """

    name: str
    template: str
    limit: int
    facts: Callable[[], Iterator[Fact]]


# Several seats, disputed, moved of late, or in one package only by custom.
_CAPITAL_UNSURE = frozenset("BJ BO CI IL KZ LK NR TZ ZA".split())

_CAPITAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "Ashgabat": ("Ashkhabad",),
    "Beijing": ("Peking",),
    "Bern": ("Berne",),
    "Chisinau": ("Kishinev",),
    "Kyiv": ("Kiev",),
    "Tehran": ("Teheran",),
    "Ulaanbaatar": ("Ulan Bator",),
}

# Changed of late or about to (euro), or two currencies in use.
_CURRENCY_UNSURE = frozenset("BG PA".split())

# No official language in law, or a second one, or another one by now.
_LANGUAGE_UNSURE = frozenset("AU DZ FM MA MK ML NE PE PG US".split())

# How a currency's name is asked for, then names that are as right.
_CURRENCY_NAMES: Mapping[str, tuple[str, ...]] = {
    "colon": ("colon", "colón"),
    "cordoba": ("cordoba", "córdoba"),
    "franc": ("franc", "CFA franc", "West African CFA franc", "Central African CFA franc"),
    "guarani": ("guarani", "guaraní"),
    "koruna": ("koruna", "crown"),
    "krona": ("krona", "króna", "crown"),
    "krone": ("krone", "crown"),
    "marka": ("mark", "convertible mark", "marka"),
    "pound": ("pound", "pound sterling", "sterling"),
    "rial": ("rial", "riyal"),
    "riels": ("riel", "riels"),
    "ruble": ("ruble", "rouble"),
    "shekel": ("shekel", "new shekel", "sheqel"),
    "sol": ("sol", "nuevo sol"),
    "som": ("som", "so'm", "sum"),
    "tugrik": ("tugrik", "tögrög", "togrog"),
    "yuan renminbi": ("yuan", "renminbi", "yuan renminbi"),
}

_LANGUAGES: Mapping[str, str] = {
    "am": "Amharic",
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "dz": "Dzongkha",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "km": "Khmer",
    "ko": "Korean",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mn": "Mongolian",
    "ms": "Malay",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovene",
    "sq": "Albanian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}

_LANGUAGE_NAMES: Mapping[str, tuple[str, ...]] = {
    "bn": ("Bangla",),
    "dv": ("Maldivian", "Divehi"),
    "fa": ("Farsi",),
    "id": ("Bahasa Indonesia",),
    "km": ("Cambodian",),
    "lo": ("Laotian",),
    "ro": ("Moldovan",),
    "sl": ("Slovenian",),
    "zh": ("Mandarin", "Standard Chinese"),
}

_ELEMENT_NAMES: Mapping[str, tuple[str, ...]] = {
    "aluminum": ("aluminium",),
    "cesium": ("caesium",),
    "sulfur": ("sulphur",),
}

# Cities that two countries claim, or where a part of the country is as right an answer ("England", "California").
_CITY_COUNTRY_UNSURE = frozenset("CY GB GE IL MD SO UA US".split())

# Claimed by two countries, or parts of a city.
_CITY_UNSURE = frozenset(
    ("Bronx", "Brooklyn", "Buda", "East Harlem", "Harlem", "Jammu", "Manhattan", "Pest", "Queens", "Srinagar")
)

# London is the capital of England too, and Brussels of the European Union.
_CAPITAL_OF_MORE = frozenset("BE GB".split())

# Transuranic elements beyond californium are hardly ever written about.
_LAST_ELEMENT = 98


def _capital(country: Country) -> str | None:
    """The capital, unless it is unsure or names the country (Mexico City)."""
    if country.capital is None or country.iso in _CAPITAL_UNSURE or shares_word(country.capital, country.name):
        return None
    return country.capital


def shares_word(one: str, other: str) -> bool:
    """Whether two names have a word in common, by its first four letters, so that one gives the other away."""
    stems = [{word[:4] for word in re.findall(r"\w{4,}", fold(name))} for name in (one, other)]
    return not stems[0].isdisjoint(stems[1])


def _capitals() -> Iterator[Fact]:
    for country in countries():
        if capital := _capital(country):
            yield Fact(country.name, capital, _CAPITAL_NAMES.get(capital, ()))


def _capital_countries() -> Iterator[Fact]:
    for country in countries():
        if (capital := _capital(country)) and country.iso not in _CAPITAL_OF_MORE:
            yield Fact(capital, country.name, country.other_names)


def _currencies() -> Iterator[Fact]:
    for country in countries():
        if country.currency and country.iso not in _CURRENCY_UNSURE:
            names = _CURRENCY_NAMES.get(country.currency, (country.currency,))
            bare = country.name.removeprefix("the ")
            owners = [owner for owner in (country.demonym, bare, *country.other_names) if owner]
            yield Fact(country.name, names[0], (*names[1:], *(f"{owner} {name}" for owner in owners for name in names)))


def _languages() -> Iterator[Fact]:
    for country in countries():
        name = _LANGUAGES.get(country.language or "")
        if name and country.iso not in _LANGUAGE_UNSURE and not shares_word(name, country.name):
            yield Fact(country.name, name, _LANGUAGE_NAMES.get(country.language or "", ()))


def _city_countries() -> Iterator[Fact]:
    asked = {country.iso: country for country in countries() if country.iso not in _CITY_COUNTRY_UNSURE}
    capitals = {fold(country.capital) for country in countries() if country.capital}
    found: Counter[str] = Counter()
    for city in _unmistakable(cities(), lambda city: city.country):
        country = asked.get(city.country)
        if country is None or fold(city.name) in capitals or not _plain(city.name):
            continue
        if found[city.country] < _CITIES_OF_ONE_COUNTRY and not shares_word(country.name, city.name):
            found[city.country] += 1
            yield Fact(city.name, country.name, country.other_names)


def _city_states() -> Iterator[Fact]:
    names = states()
    american = [city for city in cities() if city.country == "US" and city.division in names]
    for city in _unmistakable(american, lambda city: city.division):
        if not shares_word(names[city.division], city.name):
            yield Fact(city.name, names[city.division])


def _unmistakable(candidates: Sequence[City], place: Callable[[City], str]) -> Iterator[City]:
    """Well-known cities by size; none that has a namesake elsewhere, unless that is far smaller and less known."""
    namesakes: dict[str, list[City]] = defaultdict(list)
    for city in candidates:
        namesakes[fold(city.name)].append(city)
    seen: set[str] = set()
    for city in sorted(candidates, key=lambda city: (-city.population, city.name)):
        name = fold(city.name)
        if city.renown < _LEAST_RENOWN or city.name in _CITY_UNSURE or name in seen:
            continue
        seen.add(name)
        others = [other for other in namesakes[name] if place(other) != place(city)]
        if all(5 * other.population < city.population and 2 * other.renown < city.renown for other in others):
            yield city


# Below it, parts of cities and suburbs with doubtful populations.
_LEAST_RENOWN = 20
_CITIES_OF_ONE_COUNTRY = 4


def _plain(name: str) -> bool:
    """Whether a name is spelled as in English text, and not in a scientific transliteration."""
    return all(sign.isascii() or "\u00c0" <= sign <= "\u00ff" for sign in name)


def _symbol_elements() -> Iterator[Fact]:
    for element in elements()[:_LAST_ELEMENT]:
        yield Fact(element.symbol, element.name, _ELEMENT_NAMES.get(element.name, ()))


RELATIONS = (
    Relation("capital", "The capital of {} is", 135, _capitals),
    Relation("capital-country", "{} is the capital of", 145, _capital_countries),
    Relation("currency", "The currency of {} is the", 140, _currencies),
    Relation("language", "The official language of {} is", 999, _languages),
    Relation("city-country", "{} is a city in the country of", 185, _city_countries),
    Relation("city-state", "{} is a city in the US state of", 205, _city_states),
    Relation("symbol-element", "{} is the chemical symbol of", 999, _symbol_elements),
)
