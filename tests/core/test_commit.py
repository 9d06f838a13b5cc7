"""Which commit a number is said to come from."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebench import environment


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    environment.commit.cache_clear()
    yield
    environment.commit.cache_clear()


def test_a_copied_tree_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_COMMIT", "0123abc" * 5)
    assert environment.commit() == ("0123abc" * 5, None)


@pytest.mark.parametrize("named", ["", "main", "0123", "<b>0123abc</b>"])
def test_what_is_no_commit_is_not_taken_for_one(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_COMMIT", named)
    assert environment.commit()[0] != named


def test_stored_results_are_no_changes_of_the_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*given: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *who, *given], check=True, capture_output=True)

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "environment.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "src" / "environment.py"))
    (tmp_path / "leaderboard" / "results" / "mine").mkdir(parents=True)
    (tmp_path / "leaderboard" / "results" / "mine" / "suite.json").write_text("{}")
    assert environment.commit()[1] is False
    environment.commit.cache_clear()
    (tmp_path / "leaderboard" / "card.yaml").write_text("a: b")
    assert environment.commit()[1] is True
