"""The cache folder, and writing into it so that no half-written file is ever seen."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsebench.data.paths import expanded
from sparsebench.errors import InputError

VARIABLE = "SPARSEBENCH_CACHE"


def cache_folder() -> Path:
    """The folder for fetched files: `$SPARSEBENCH_CACHE`, or the user's cache folder. It need not exist yet."""
    if given := os.environ.get(VARIABLE):
        return expanded(given, VARIABLE).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("sparsebench", appauthor=False)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new empty folder inside `parent` to build something in before it is published; it is removed at the end.

    Raises:
        InputError: The cache cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=parent))
    except OSError as error:
        hint = f"set {VARIABLE} to a folder that can be written"
        raise InputError(f"cannot write to {parent}: {error.strerror}", hint) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(built: Path, target: Path) -> Path:
    """Move what was built in a staging folder into its place, at once, and return the place.

    Two processes that build the same do the work twice and harm nobody: a file that is already there is replaced,
    a folder that is already there is kept.
    """
    try:
        return built.replace(target)
    except OSError:
        if built.is_dir() and target.is_dir():
            return target
        raise
