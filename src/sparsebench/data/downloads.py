"""Files of the web, kept by their content."""

from __future__ import annotations

import errno
import http.client
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.data.digests import sha256_file
from sparsebench.errors import IntegrityError, MissingError
from sparsebench.redaction import public_address

#: What a download may hold, in bytes.
SIZE_LIMIT = 16 << 30

_CHUNK = 1 << 20
_SILENCE_SECONDS = 30
_PAUSES = (1.0, 4.0)
"""Seconds before each further try."""


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
            message = f"{public_address(url)} has sha256 {actual}, expected {sha256.lower()}"
            raise IntegrityError(message, "the file there was changed")
        return publish(stage / target.name, target)


def cached_url(url: str, sha256: str) -> Path | None:
    """The cached file of a URL, if it is there and intact."""
    place = _place(url, sha256)
    return place if place.is_file() and sha256_file(place) == sha256.lower() else None


def has_url(url: str, sha256: str) -> bool:
    """Whether a URL was fetched before; the content is not looked at."""
    return _place(url, sha256).is_file()


def _download(url: str, path: Path) -> str:
    """Download to a new file and return its sha256; a connection that breaks is tried again."""
    pauses = list(_PAUSES)
    while True:
        try:
            _copy(url, path)
            return sha256_file(path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not pauses or _final(error):
                raise MissingError(f"{public_address(url)} cannot be fetched: {error}", _hint(path)) from error
        time.sleep(pauses.pop(0))


def _final(error: Exception) -> bool:
    """Whether trying again is of no use: no such host, no such file, no room."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return no_room or isinstance(error, urllib.error.URLError | ValueError)


def _copy(url: str, path: Path) -> None:
    """Write what is at a URL to a file.

    Raises:
        MissingError: It is too large.
        OSError: The connection broke, or ended before all was there; or the disk is full.
    """
    with urllib.request.urlopen(_request(url), timeout=_SILENCE_SECONDS) as answer, path.open("wb") as file:
        length = answer.headers.get("Content-Length", "")
        announced = int(length) if length.isdecimal() else None
        size = announced or 0
        left = SIZE_LIMIT
        while size <= SIZE_LIMIT and (chunk := answer.read(min(_CHUNK, left + 1))):
            left -= len(chunk)
            size = max(size, SIZE_LIMIT - left)
            file.write(chunk)
        if size > SIZE_LIMIT:
            raise MissingError(f"{public_address(url)} is larger than {SIZE_LIMIT} bytes", _hint(path))
        if announced is not None and file.tell() < announced:
            raise ConnectionError(f"it ended after {file.tell()} of {announced} bytes")


def _request(url: str) -> urllib.request.Request:
    """A request; a name and password in the address become a header, which no other host is sent."""
    parts = urlsplit(url)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(plain, headers={"User-Agent": "sparsebench"})
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {b64encode(pair.encode()).decode()}")
    return request


def _hint(path: Path) -> str:
    return f"check the network, or put the file at {_hint_place(path)} by hand"


def _hint_place(path: Path) -> Path:
    """The final place of a file that is being downloaded into a staging folder beside it."""
    return path.parent.parent / path.name


def _place(url: str, sha256: str) -> Path:
    """`urls/<sha256>/<name>`: the name keeps its endings, which say how the file is read."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
    return cache_folder() / "urls" / sha256.lower() / name
