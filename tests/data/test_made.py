"""Generated rows are made once, and again when anything changes that they follow from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import tiny_tokenizer

from sparsebench.data import made
from sparsebench.data.embedded import needles
from sparsebench.tasks.builders import build_rows

OPTIONS: dict[str, Any] = {"length": 600, "n": 2, "kind": "single", "seed": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path))
    return tmp_path / "made"


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[dict[str, Any]]:
        self.calls += 1
        return [{"id": "a", "pair": (1, 2.5), "text": "\u00e9\u2028"}]


def test_rows_are_those_that_would_be_made(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    first, second = (build_rows("needles", [], OPTIONS, tokenizer) for _ in range(2))
    assert first == second
    assert first.rows == needles.rows(tokenizer.encode, **OPTIONS)
    assert len(list(folder.iterdir())) == 1


def test_what_was_made_is_not_made_again(folder: Path) -> None:
    make, tokenizer = Maker(), tiny_tokenizer()
    first, second = (made.kept("needles", OPTIONS, tokenizer, make) for _ in range(2))
    assert make.calls == 1
    assert first == second == [{"id": "a", "pair": [1, 2.5], "text": "\u00e9\u2028"}]


def test_other_options_tokenizers_and_code_make_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    make, tokenizer = Maker(), tiny_tokenizer()
    made.kept("needles", OPTIONS, tokenizer, make)
    made.kept("needles", {**OPTIONS, "seed": 1}, tokenizer, make)
    made.kept("tracking", OPTIONS, tokenizer, make)
    tokenizer.add_tokens(["sparsebench"])
    made.kept("needles", OPTIONS, tokenizer, make)
    monkeypatch.setattr(made, "_code", lambda: "other")
    made.kept("needles", OPTIONS, tokenizer, make)
    assert make.calls == 5


@pytest.mark.parametrize("content", [b"", b"[", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\0\0\0\0\0\0\xffgarbage"])
def test_a_damaged_file_is_made_again(folder: Path, content: bytes) -> None:
    make, tokenizer = Maker(), tiny_tokenizer()
    wanted = made.kept("needles", OPTIONS, tokenizer, make)
    (place,) = folder.iterdir()
    place.write_bytes(content)
    assert made.kept("needles", OPTIONS, tokenizer, make) == wanted
    assert make.calls == 2
    assert made.kept("needles", OPTIONS, tokenizer, make) == wanted
    assert make.calls == 2


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path) -> None:
    folder.write_text("a file in its place")
    make = Maker()
    assert len(made.kept("needles", OPTIONS, tiny_tokenizer(), make)) == 1


def test_a_tokenizer_that_cannot_say_all_that_it_does_is_asked_each_time() -> None:
    make = Maker()
    for _ in range(2):
        made.kept("needles", OPTIONS, object(), make)
    assert make.calls == 2
