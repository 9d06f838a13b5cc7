"""Files of the web, kept by their content."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.data.digests import sha256_file
from sparsebench.errors import IntegrityError, MissingError

#: What a download may hold, in bytes.
SIZE_LIMIT = 16 << 30

_CHUNK = 1 << 20
_SILENCE_SECONDS = 30


def fetch_url(url: str, sha256: str) -> Path:
    """The file at a URL: from the cache, else from the web.

    Args:
        url: http or https; the content is checked either way.
        sha256: Of the file's bytes.

    Raises:
        MissingError: It cannot be had.
        IntegrityError: Something else is there.
    """
    if cached := cached_url(url, sha256):
        return cached
    target = _place(url, sha256)
    with staging(target.parent) as stage:
        actual = _download(url, stage / target.name)
        if actual != sha256.lower():
            raise IntegrityError(f"{url} has sha256 {actual}, expected {sha256.lower()}", "the file there was changed")
        return publish(stage / target.name, target)


def cached_url(url: str, sha256: str) -> Path | None:
    """The cached file of a URL, if it is there and intact."""
    place = _place(url, sha256)
    return place if place.is_file() and sha256_file(place) == sha256.lower() else None


def has_url(url: str, sha256: str) -> bool:
    """Whether a URL was fetched before; the content is not looked at."""
    return _place(url, sha256).is_file()


def _download(url: str, path: Path) -> str:
    """Download to a new file and return its sha256."""
    hint = f"check the network, or put the file at {_hint_place(path)} by hand"
    request = urllib.request.Request(url, headers={"User-Agent": "sparsebench"})
    size = 0
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE_SECONDS) as answer, path.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > SIZE_LIMIT:
                    raise MissingError(f"{url} is larger than {SIZE_LIMIT} bytes", hint)
                file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise MissingError(f"{url} cannot be fetched: {error}", hint) from error
    return sha256_file(path)


def _hint_place(path: Path) -> Path:
    """The final place of a file that is being downloaded into a staging folder beside it."""
    return path.parent.parent / path.name


def _place(url: str, sha256: str) -> Path:
    """`urls/<sha256>/<name>`: the name keeps its endings, which say how the file is read."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
    return cache_folder() / "urls" / sha256.lower() / name
