"""Results folders in an object store: `s3://bucket/results`, `gs://...`, `memory://...`, whatever fsspec knows.

A run works on a copy in the cache: what the store holds is fetched first, each finished cell is sent as soon as it is
done, and its `record.json` last, so that a reader sees whole cells only. An object store has no locks: of two runs on
one address both may compute the same cell, and the last to send it is kept. Give each run a shard, or a folder of a
file system that they share.
"""

from __future__ import annotations

import hashlib
import json
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
LOCAL = ("file", "local")
LAST = "record.json"
"""What is sent last, and what says that a cell is there."""

FETCHED = ".fetched.json"
"""In a mirror: what the store said of each file when it was fetched."""
SAID = ("etag", "ETag", "md5Hash", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""What stores say of a file that changes when its content does; each knows some of them."""


def address(path: str | os.PathLike[str]) -> str | None:
    """The address that a path means; None for a folder of this machine."""
    found = ADDRESS.fullmatch(str(path))
    if not found:
        return None
    # A file's address is absolute; a `Path` has lost the slash that says so.
    return f"{found[1]}://{'/' if found[1] in LOCAL else ''}{found[2].lstrip('/')}"


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
        self.folder = self._copy("")
        self.there: set[str] = set()
        """Cells that the store holds, as far as is known."""

    def _copy(self, purpose: str) -> Path:
        return cache_folder() / "remote" / (hashlib.sha256(self.address.encode()).hexdigest()[:32] + purpose)

    def fetch(self) -> Path:
        """Bring what the store holds into the run's copy, which may hold cells that could not be sent.

        Files that are there with the same size are not fetched again.

        Raises:
            StorageError: The store does not answer.
        """
        with self._spoken():
            found = self._listed()
            for name, facts in found.items():
                target = self.folder / name
                if not target.is_file() or target.stat().st_size != facts["size"]:
                    self._get(facts["path"], target)
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        return self.folder

    def mirror(self) -> Path:
        """A copy of what the store holds, and of nothing else.

        Files are fetched again where the store says of them something else than it did then.

        Raises:
            InputError: The store holds no results there.
            StorageError: The store does not answer.
        """
        place = self._copy("-read")
        index = place / FETCHED
        with self._spoken():
            found = self._listed()
            if not found:
                raise InputError(f"{self.address} is no results folder", "`sparsebench run --out ADDRESS` makes one")
            with staging(place.parent) as aside:
                known = json.loads(index.read_bytes()) if index.is_file() else {}
                whole = aside / "whole"
                (whole / "cells").mkdir(parents=True)
                for name, facts in found.items():
                    before, target = place / name, whole / name
                    target.parent.mkdir(exist_ok=True)
                    if known.get(name) == _signature(facts) and before.is_file():
                        os.link(before, target)
                    else:
                        self._get(facts["path"], target)
                signatures = {name: _signature(facts) for name, facts in found.items()}
                (whole / FETCHED).write_text(json.dumps(signatures), encoding="utf-8")
                if place.exists():
                    place.replace(aside / "before")
                whole.replace(place)
        return place

    def _listed(self) -> dict[str, dict[str, Any]]:
        """Files of the results that the store holds, those of cells that are whole, each cell's record last."""
        found: dict[str, dict[str, Any]] = {}
        if self.files.exists(self.base):
            self.files.invalidate_cache()
            for path, facts in self.files.find(self.base, detail=True).items():
                found[path.removeprefix(self.base).lstrip("/")] = {**facts, "path": path}
        self.there = {name.split("/")[1] for name in found if MEMBER.fullmatch(name) and name.endswith(LAST)}
        kept = [n for n in found if n == "suite.json" or (MEMBER.fullmatch(n) and n.split("/")[1] in self.there)]
        if sum(int(found[name]["size"] or 0) for name in kept) > LARGEST:
            raise StorageError(f"{self.address} holds more than {LARGEST >> 30} GiB")
        return {name: found[name] for name in sorted(kept, key=lambda name: name.endswith(LAST))}

    def _get(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging(self.folder.parent) as aside:
            self.files.get_file(path, str(aside / "file"))
            (aside / "file").replace(target)

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


def _signature(facts: dict[str, Any]) -> list[str]:
    return [str(facts["size"]), *(f"{name} {facts[name]}" for name in SAID if facts.get(name) is not None)]
