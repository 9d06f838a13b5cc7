"""Independent pieces of work on all processors, where that is safe and worth it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_inherited: list[Any] = []
"""What forked processes find in their memory, so that it is not sent to them: the work and its items."""


def each(work: Callable[[Item], Result], items: Sequence[Item], *, worth: bool) -> list[Result]:
    """`work` of every item, in their order.

    Args:
        work: May change nothing but what it returns, for it may run in another process.
        items: What it is asked about.
        worth: Whether there is enough to do to pay for processes.
    """
    processors = _processors()
    if not worth or processors < 2 or len(items) < 2 or not _may_fork():
        return [work(item) for item in items]
    _inherited[:] = [work, items]
    gc.freeze()  # or each process would copy what it inherits, by looking for garbage in it
    try:
        with multiprocessing.get_context("fork").Pool(processors, _alone) as pool:
            found: list[Result] = pool.map(_one, range(len(items)), max(1, len(items) // (32 * processors)))
            return found
    finally:
        gc.unfreeze()
        _inherited.clear()


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: it would go through all objects of all records again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _may_fork() -> bool:
    """A forked process has none of its parent's threads, and would wait for what they held."""
    return sys.platform == "linux" and "torch" not in sys.modules and threading.active_count() == 1


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone() -> None:
    """Each process has one processor."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _one(place: int) -> Any:
    work, items = _inherited
    return work(items[place])
