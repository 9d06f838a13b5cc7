"""Results folders in an object store: `s3://bucket/results`, `gs://...`, `memory://...`, whatever fsspec knows.

A run works on a copy in the cache: what the store holds is fetched first, each finished cell is sent as soon as it is
done, and its `record.json` last, so that a reader sees whole cells only. An object store has no locks: of two runs on
one address both may compute the same cell, and the last to send it is kept. Give each run a shard, or a folder of a
file system that they share.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsebench.data.cache import cache_folder, staging
from sparsebench.errors import InputError, MissingError, SparseBenchError, StorageError
from sparsebench.packing import LARGEST, MEMBER

ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/{1,2}(.+)")
"""An address; a `Path` has lost one of its slashes."""
LAST = "record.json"
"""What is sent last, and what says that a cell is there."""


def address(path: str | os.PathLike[str]) -> str | None:
    """The address that a path means; None for a folder of this machine."""
    found = ADDRESS.fullmatch(str(path))
    return f"{found[1]}://{found[2]}" if found else None


class Remote:
    """A results folder in an object store, with its copy in the cache.

    Args:
        address: As fsspec writes it.

    Raises:
        InputError: fsspec knows no such store.
        MissingError: The package for that store is not installed.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        try:
            self.files, self.base = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise MissingError(f"{address}: {error}", "pip install s3fs for s3://, gcsfs for gs://") from None
        except ValueError as error:
            raise InputError(f"{address}: {error}") from None
        self.address = address
        self.folder = cache_folder() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:32]
        self.there: set[str] = set()
        """Cells that the store holds, as far as is known."""

    def fetch(self) -> Path:
        """Bring what the store holds into the copy; files that are there with the same size are not fetched again.

        Raises:
            StorageError: The store does not answer.
        """
        with self._spoken():
            found: dict[str, dict[str, Any]] = {}
            if self.files.exists(self.base):
                self.files.invalidate_cache()
                for path, facts in self.files.find(self.base, detail=True).items():
                    found[path.removeprefix(self.base).lstrip("/")] = {**facts, "path": path}
            self.there = {name.split("/")[1] for name in found if MEMBER.fullmatch(name) and name.endswith(LAST)}
            kept = [n for n in found if n == "suite.json" or (MEMBER.fullmatch(n) and n.split("/")[1] in self.there)]
            if sum(int(found[name]["size"] or 0) for name in kept) > LARGEST:
                raise StorageError(f"{self.address} holds more than {LARGEST >> 30} GiB")
            for name in sorted(kept, key=lambda name: name.endswith(LAST)):
                target = self.folder / name
                if not target.is_file() or target.stat().st_size != found[name]["size"]:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with staging(self.folder.parent) as aside:
                        self.files.get_file(found[name]["path"], str(aside / "file"))
                        (aside / "file").replace(target)
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        return self.folder

    def send(self, cell: str) -> None:
        """Send a stored cell.

        Raises:
            StorageError: The store does not take it.
        """
        place = self.folder / "cells" / cell
        for path in sorted(place.iterdir(), key=lambda path: path.name == LAST):
            self._put(path)
        self.there.add(cell)

    def send_suite(self) -> None:
        """Send the suite and its lock.

        Raises:
            StorageError: The store does not take it.
        """
        self._put(self.folder / "suite.json")

    def _put(self, path: Path) -> None:
        name = f"{self.base}/{path.relative_to(self.folder).as_posix()}"
        with self._spoken():
            self.files.makedirs(name.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), name)

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """Whatever a client library raises, in words."""
        try:
            yield
        except SparseBenchError:
            raise
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            hint = "what was computed is in the cache; the same command sends it and goes on"
            raise StorageError(f"{self.address}: {text[0]}", hint) from error
