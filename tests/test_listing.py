"""Listing is instant: no command that only lists or shows imports a heavy library. And every card is complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from sparsebench import adapters
from sparsebench.adapters.registry import FAMILIES
from sparsebench.listing import listing
from sparsebench.tasks import registry as tasks

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "matplotlib",
    "lm_eval",
    "pyarrow",
    "scipy",
    "datasets",
    "sentence_transformers",
)

BLOCKED = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
from sparsebench.cli import main
main()
"""


def without_heavy_libraries(*arguments: str) -> str:
    """What the command line prints in a process in which no heavy library can be imported."""
    ran = subprocess.run([sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["show", "wanda"]])
def test_help_and_cards_need_no_heavy_library(arguments: list[str]) -> None:
    assert without_heavy_libraries(*arguments)


@pytest.mark.parametrize("kind", ["adapters", "suites", "tasks", "models", "data"])
def test_listing_needs_no_heavy_library(kind: str) -> None:
    assert without_heavy_libraries("list", kind)
    rows = json.loads(without_heavy_libraries("list", kind, "--json"))
    assert rows
    for row in rows:
        assert {"id", "family", "title", "needs"} <= set(row), row
        assert isinstance(row["needs"], list)
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids))


def test_a_family_can_be_listed_alone() -> None:
    rows = json.loads(without_heavy_libraries("list", "adapters", "--json", "--family", "pruning"))
    assert {row["family"] for row in rows} == {"pruning"}


def test_every_family_has_methods_and_a_control() -> None:
    for family in FAMILIES:
        cards = adapters.cards(family)
        assert any(card.role == "method" for card in cards), family
        assert any(card.role == "control" for card in cards), family


@pytest.mark.parametrize("name", adapters.ids())
def test_every_card_is_complete(name: str) -> None:
    method = adapters.get(name)
    card = method.card
    assert card.id == name
    assert card.title and card.unit
    assert card.summary.endswith("."), "a sentence"
    assert card.budgets or card.adaptivity == "threshold" or not card.phases, "a method says how sparse it can be"
    assert card.modes
    assert len(set(card.phases)) == len(card.phases)
    if card.paper is not None:
        assert card.paper.title and card.paper.authors and card.paper.url.startswith("https://")
        assert re.fullmatch(r"[a-z]+\d{4}[a-z0-9]+", card.paper.key)
        assert card.paper.key in card.paper.bibtex
    if card.nearest:
        assert card.nearest in adapters.ids() or card.nearest == "dense", f"no method {card.nearest}"
        assert card.nearest != card.id
    assert method.__doc__ and not method.__doc__.startswith("One sparse method"), "its own docstring"


@pytest.mark.parametrize("name", adapters.ids())
def test_a_methods_file_is_named_after_it(name: str) -> None:
    method = adapters.get(name)
    family, _, file = method.__module__.removeprefix("sparsebench.adapters.").partition(".")
    assert (family, file) == (method.card.family, name.replace("-", "_"))


def test_keys_of_papers_are_unique() -> None:
    titles: dict[str, str] = {}
    for card in adapters.cards():
        if card.paper is not None:
            assert titles.setdefault(card.paper.key, card.paper.title) == card.paper.title, card.id


def test_every_knob_has_a_default_so_that_create_needs_a_name_alone() -> None:
    for name in adapters.ids():
        assert adapters.get(name).configure({}).config is not None


def test_names_that_are_listed_are_names_that_work() -> None:
    rows = listing("tasks")
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        assert tasks.get(row["id"]).id == row["id"]
        base, _, first = row["id"].rpartition("-")
        at_lengths = [f"{base}-{length}" for length in row["lengths"]] or [row["id"]]
        assert not row["lengths"] or first == row["lengths"][0]
        assert set(at_lengths) <= {d.task for d in tasks.definitions()} & set(tasks.names())
