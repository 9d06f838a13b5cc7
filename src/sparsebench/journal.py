"""Which stored cells were found whole, so that a run that goes on does not read all of them again.

`RESULTS/cells/.whole` has a line for each: its id, and sizes, times and inodes of its files. A cell whose files are not
those of its last line any more is read and checked anew. The file may be lost, cut short or copied to another machine:
that costs time only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sparsebench.plain_files import content_of, open_plain

FILE = ".whole"
NAMES = ("spec.json", "record.json", "env.json", "samples.parquet")


def signature(folder: Path) -> str | None:
    """What changes when a file of a cell does; None where one is missing."""
    parts = []
    try:
        for name in NAMES:
            found = os.stat(f"{folder}/{name}")
            parts.append(f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}")
    except OSError:
        return None
    return ",".join(parts)


def note(cells: Path, identities: Iterable[str]) -> None:
    """Write down that these cells were found whole.

    Args:
        cells: The folder of the cells.
        identities: Their ids.
    """
    found = ((identity, signature(cells / identity)) for identity in identities)
    lines = "".join(f"{identity} {text}\n" for identity, text in found if text is not None)
    if lines:
        with suppress(OSError):
            file = open_plain(cells / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with open(file, "a", encoding="ascii") as stream:
                stream.write(lines)


def noted(cells: Path) -> dict[str, str]:
    """The last line of each cell: its signature then, by id."""
    try:
        text = content_of(cells / FILE).decode("ascii", errors="replace")
    except OSError:
        return {}
    return {identity: was for identity, _, was in (line.partition(" ") for line in text.splitlines())}
