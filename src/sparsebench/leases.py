"""Which cells a run has in hand, so that two runs on one folder share the work instead of doing it twice.

A lease is a lock on one byte of `RESULTS/cells/.leases`, at an offset that the cell's id gives. The kernel drops it
when its process ends, however that ends, so that no lease outlives a run that was killed and no clock is asked. Shared
file systems pass such locks on to other machines; one that has no locks grants every lease, and then the same cell may
be computed twice, of which the first to finish is kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparsebench.plain_files import open_plain

try:
    import fcntl
except ImportError:  # Windows: leases hold within a process only
    fcntl = None  # type: ignore[assignment]

FILE = ".leases"

_guard = threading.Lock()
_held: set[tuple[int, str, str]] = set()
"""(process, file, cell): locks of a file exclude other processes only, and this the other threads."""
_files: dict[str, int] = {}
"""Descriptors by path, open while a lease is held: closing any one drops all locks that the process has on the file."""


@contextmanager
def leased(folder: Path, identities: Iterable[str]) -> Iterator[frozenset[str]]:
    """Lease cells for as long as the context lasts; gives those that nobody else has.

    Args:
        folder: Where the cells are.
        identities: Ids of the cells.
    """
    mine = frozenset(identity for identity in identities if _take(folder, identity))
    try:
        yield mine
    finally:
        for identity in mine:
            _release(folder, identity)


def _take(folder: Path, identity: str) -> bool:
    path = os.path.join(os.path.realpath(folder), FILE)
    key = (os.getpid(), path, identity)
    with _guard:
        if key in _held:
            return False
        try:
            if not _lock(_descriptor(path), identity):
                _close_unused(path)
                return False
        except OSError:
            pass  # no locks here
        _held.add(key)
        return True


def _release(folder: Path, identity: str) -> None:
    path = os.path.join(os.path.realpath(folder), FILE)
    with _guard:
        _held.discard((os.getpid(), path, identity))
        if fcntl is not None and path in _files:
            with suppress(OSError):
                fcntl.lockf(_files[path], fcntl.LOCK_UN, 1, _offset(identity))
        _close_unused(path)


def _close_unused(path: str) -> None:
    """A process that reads and writes many folders would else run out of descriptors."""
    if path in _files and not any(held[:2] == (os.getpid(), path) for held in _held):
        with suppress(OSError):
            os.close(_files[path])
        del _files[path]


def _lock(descriptor: int, identity: str) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(identity))
    except (BlockingIOError, PermissionError):  # POSIX lets a taken lock be either
        return False
    return True


def _offset(identity: str) -> int:
    return int(identity, 16) >> 2  # below the largest offset of a file


def _descriptor(path: str) -> int:
    """The file's descriptor; a new one where the file was removed and made again."""
    known = _files.get(path)
    if known is not None:
        try:
            if os.path.samestat(os.fstat(known), os.lstat(path)):
                return known
        except OSError:
            pass
        os.close(known)
        del _files[path]
    _files[path] = open_plain(path, os.O_RDWR | os.O_CREAT)
    return _files[path]
