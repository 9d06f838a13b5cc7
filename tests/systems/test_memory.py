"""Memory that a piece of work adds."""

from __future__ import annotations

import mmap
import time

import pytest
import torch

from sparsebench.systems.memory import added_memory, resident

pytestmark = pytest.mark.skipif(resident() is None, reason="this system does not say how much memory a process has")


def test_fresh_pages_are_seen_although_they_are_gone_again() -> None:
    with added_memory(interval=0.001) as added:
        pages: mmap.mmap | None = mmap.mmap(-1, 64 * 2**20)
        torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
        time.sleep(0.05)
        pages = None
    assert added.bytes is not None
    assert 60 * 2**20 <= added.bytes <= 200 * 2**20


def test_it_is_known_after_an_exception_too() -> None:
    with pytest.raises(KeyError), added_memory() as added:
        raise KeyError
    assert added.bytes is not None and added.bytes >= 0
