"""Hashes that say what data is, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsebench.data.reading import read_bytes
from sparsebench.errors import InputError, IntegrityError, MissingError
from sparsebench.identity import digest


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """Hexadecimal sha256 of a folder: of its sorted lines `<sha256 of the file>  <relative path>`.

    Hidden files and folders and `__pycache__` are left out: tools write them beside the data.
    """
    lines = [f"{sha256_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in visible_files(folder)]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def sha256_path(path: Path) -> str:
    """`sha256_tree` of a folder, `sha256_file` of a file.

    Raises:
        MissingError: Nothing is there.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist")
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def visible_files(folder: Path) -> Iterator[Path]:
    """The regular files below a folder that `sha256_tree` counts, in no particular order."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def sha256_content(path: Path) -> str:
    """The sha256 of a folder, or of a file's content: a .gz or .bz2 file counts as what is in it.

    So the same data has the same hash, whether somebody compressed it or not.

    Raises:
        MissingError: Nothing is there.
        IntegrityError: The compressed file is cut short or damaged.
    """
    if path.suffix in (".gz", ".bz2") and path.is_file():
        return hashlib.sha256(read_bytes(path)).hexdigest()
    return sha256_path(path)


def check_sha256(path: Path, expected: str | None, what: str) -> str:
    """The `sha256_content` of a file or folder.

    Args:
        path: File or folder.
        expected: What it should be: of the content or, for a compressed file, of its bytes as they are.
        what: How an error names it.

    Raises:
        IntegrityError: It is another one.
    """
    actual = sha256_content(path)
    if expected is not None and expected.lower() not in (actual, sha256_path(path)):
        raise IntegrityError(
            f"{what} has sha256 {actual}, expected {expected.lower()}",
            f"the bytes at {path} are not those that were asked for: remove them, or correct the sha256",
        )
    return actual


def content_hash(content: Any) -> str:
    """Hexadecimal sha256 of rows (or of any JSON value) as `identity.canonical` JSON.

    Equal rows in equal order have equal hashes.

    Raises:
        InputError: The content has something that JSON lacks (NaN, bytes, a key that is not a string).
    """
    _check_keys(content)
    try:
        return digest(content)
    except (TypeError, ValueError) as error:
        hint = "rows hold strings, finite numbers, lists and mappings"
        raise InputError(f"rows cannot be hashed: {error}", hint) from error


def _check_keys(content: Any) -> None:
    """Refuse keys that JSON would silently turn into strings: {1: ...} and {"1": ...} would have one hash."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise InputError(f"rows cannot be hashed: the key {key!r} is not a string")
            _check_keys(value)
    elif isinstance(content, list | tuple):
        for value in content:
            _check_keys(value)
