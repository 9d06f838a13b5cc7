"""Hostile and damaged input of every kind: a result or one of our errors, never a traceback, a hang or a stray file.

`benchmarks/fuzz` tries ten times as many.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import fuzzing
import pytest

INPUTS = 2000
NAMES = (
    *("suite", "task", "card", "knobs", "result", "submission", "qrels", "corpus", "queries", "gguf", "safetensors"),
    *("model configuration", "lm-eval task", "lm-eval log", "reference", "claim", "finding"),
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzzing.Kind]:
    return {kind.name: kind for kind in fuzzing.kinds(tmp_path_factory.mktemp("fuzz") / "seeds")}


@pytest.mark.parametrize("name", NAMES)
def test_input_gives_a_result_or_an_error_in_words(kinds, name, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "arena" / "input").mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "arena")  # a data set that names no files is all that lies in the working folder
    assert set(kinds) == set(NAMES)
    numbers = [number for kind, number in fuzzing.plan(list(kinds.values()), INPUTS) if kind.name == name]
    said = Counter()
    for number in numbers:
        outcome, found = fuzzing.attempt(kinds[name], number, tmp_path / "arena" / "input")
        assert found is None, found
        said[outcome] += 1
    assert said["refused"]  # the changes do damage


@pytest.mark.parametrize(("name", "number"), [("task", 618), ("task", 1292), ("gguf", 1430), ("gguf", 401)])
def test_inputs_that_once_broke_something(kinds, name, number, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    arena = tmp_path / "arena" / "input"
    arena.mkdir(parents=True)
    outcome, found = fuzzing.attempt(kinds[name], number, arena)
    assert outcome in ("result", "refused") and found is None, found


def test_seeds_are_valid(kinds, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    for kind in kinds.values():
        for number, seed in enumerate(kind.seeds[:3]):
            place = tmp_path / f"{kind.name}-{number}"
            place.mkdir()
            if kind.name != "lm-eval log":  # its samples are not beside it
                kind.feed(seed, place)


def test_an_input_is_made_again_by_its_number_alone(kinds):
    for kind in kinds.values():
        assert kind.input(7) == kind.input(7)
        assert len({kind.input(number) for number in range(20)}) > 10


def test_a_traceback_a_hang_and_a_stray_file_are_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fuzzing, "PATIENCE", 1)
    arena = tmp_path / "arena" / "input"
    arena.mkdir(parents=True)

    def feed(data: bytes, folder: Path) -> None:
        match json.loads(data)["do"]:
            case "raise":
                raise KeyError("x")
            case "hang":
                while True:
                    pass
            case "stray":
                (folder.parent / "stray").write_bytes(b"")

    for do, what in (("raise", "KeyError"), ("hang", "more than 1 s"), ("stray", "files outside")):
        kind = fuzzing.Kind("k", (json.dumps({"do": do}).encode(),), feed, lambda seed, random_: seed, 1)
        _, found = fuzzing.attempt(kind, 0, arena)
        assert found is not None
        assert found.what.startswith(what)
