"""Files that are not in memory yet, asked for before they are needed.

Results of many cells are many small files. Where they come from a disk or a network, reading one after the other is
mostly waiting; threads that read ahead leave them in the system's memory for the reader to find there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

PIECE = 256
"""Items that are asked for together."""
AHEAD = 2
"""Pieces that are asked for before they are needed."""
THREADS = 16
WAITING = 1.5
"""Times its own work that a piece takes, from which on it is read ahead."""


def ahead(items: Sequence[Item], files: Callable[[Item], Iterable[str | os.PathLike[str]]]) -> Iterator[Item]:
    """The items in their order; as soon as using them was seen to be mostly waiting, `files` are read ahead.

    Args:
        items: Of each, files are read when it is used.
        files: Those files.
    """
    pieces = [items[first : first + PIECE] for first in range(0, len(items), PIECE)]
    with ThreadPoolExecutor(THREADS) as pool:
        asked, slow = 0, False
        for number, piece in enumerate(pieces):
            if slow:
                for place in range(max(asked, number + 1), min(number + 1 + AHEAD, len(pieces))):
                    paths = [path for item in pieces[place] for path in files(item)]
                    pool.map(_read, [paths[first::THREADS] for first in range(THREADS)])
                    asked = place + 1
            start, own = time.perf_counter(), time.thread_time()
            yield from piece
            # Once it was slow it stays so: that it is quick from here on is what reading ahead is for.
            slow |= time.perf_counter() - start > WAITING * (time.thread_time() - own) + 0.01


def _read(paths: list[str | os.PathLike[str]]) -> None:
    for path in paths:
        with suppress(OSError):  # whoever needs the file says what is wrong with it
            Path(path).read_bytes()
