"""Files of a results folder, which may be a stranger's.

A link, a pipe or a device in a file's place is neither read nor written through: nothing outside the folder is touched,
and nothing is read that has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 256 * 2**20
"""Bytes of a file that is read whole, where nothing else is said."""
LINK = "is a link; copy the folder with its links followed (cp -rL)"
_AT_ONCE = 1 << 16
"""Bytes of a file that are asked for at once."""
_FLAGS = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
# Opening a pipe waits for its other end, unless told otherwise.
_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_plain(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor of a plain file.

    Args:
        path: The file.
        flags: As for `os.open`.
        mode: Of a file that is made.

    Raises:
        OSError: It is a link, a pipe or a device, or it cannot be opened.
    """
    try:
        file = os.open(path, flags | _FLAGS, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # which of the two depends on the system
            raise OSError(error.errno, LINK, str(path)) from None
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, "is no plain file", str(path)) from None
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "is no plain file", str(path))


def content_of(path: str | Path, most: int = LARGEST) -> bytes:
    """The whole of a plain file, by few calls of the system: a report opens four files of each cell.

    Raises:
        OSError: It is a link, a pipe or a device, it holds more than `most` bytes, or it cannot be read.
    """
    file = open_plain(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(file, _AT_ONCE):
            parts.append(part)
            most -= len(part)
            if most < 0:
                raise OSError(errno.EFBIG, "is too large to be what it should be", str(path))
    finally:
        os.close(file)
    return b"".join(parts)
