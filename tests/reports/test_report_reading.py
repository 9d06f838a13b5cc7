"""Reading ahead: the order, what is asked for, and that nothing but time depends on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from sparsebench.reports import reading


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read ahead."""
    seen: list[Path] = []
    monkeypatch.setattr(reading, "PIECE", 4)
    monkeypatch.setattr(reading, "_read", lambda paths: seen.extend(paths))
    return seen


def files(number: int) -> list[Path]:
    return [Path(f"{number}.a"), Path(f"{number}.b")]


def test_what_is_quick_is_not_read_ahead(opened: list[Path]) -> None:
    assert list(reading.ahead(range(20), files)) == list(range(20))
    assert opened == []


def test_what_waits_is_read_ahead_once_and_in_order(opened: list[Path]) -> None:
    used = []
    for number in reading.ahead(range(18), files):
        used.append(number)
        time.sleep(0.005)
    assert used == list(range(18))
    # The first piece showed that there is waiting; the second was being read by then.
    assert sorted(opened) == sorted(path for number in range(8, 18) for path in files(number))


def test_no_thread_is_left_behind(opened: list[Path]) -> None:
    before = threading.active_count()
    for _ in reading.ahead(range(9), files):
        time.sleep(0.005)
    assert threading.active_count() == before


def test_a_file_that_is_not_there_is_not_its_concern(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    reading._read([tmp_path / "there", tmp_path / "gone", tmp_path])
