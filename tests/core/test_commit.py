"""Which commit a number is said to come from."""

from __future__ import annotations

from collections.abc import Iterator

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
