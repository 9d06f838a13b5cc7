"""References to models and data: one short text says where something is.

    pypi:package==version#path/in/wheel      a file or folder of a wheel; `&sha256=...` may follow, the wheel's
    hf:org/name@revision                     a repository of the hub; `@revision` and a trailing `#path` may be left out
    path:DIR                                 a folder or file on this machine
    url:https://host/file#sha256=...         one file, by its content

`parse` turns such a text into a frozen value and touches neither disk nor network, except that a bare `org/name` is
refused when a folder of that name stands here. `str(reference)` is the canonical text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sparsebench.errors import InputError
from sparsebench.redaction import public_address

FORMS = (
    "pypi:package==version#path/in/wheel",
    "hf:org/name@revision",
    "path:DIR",
    "url:https://host/file#sha256=<64 hexadecimal digits>",
)

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class PypiReference:
    """A file or folder inside a wheel.

    Attributes:
        package: Canonical name of the package.
        version: Exact version.
        member: Path in the wheel, with forward slashes.
        sha256: Of the wheel; None where only the package index vouches for it.
    """

    package: str
    version: str
    member: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}#{self.member}" + (f"&sha256={self.sha256}" if self.sha256 else "")


@dataclass(frozen=True)
class HubReference:
    """A repository of the hub.

    Attributes:
        name: `org/name`, or `name` for the few repositories that have no owner.
        revision: Branch, tag or commit; None for the default branch.
        member: A file or folder in the repository; None for all of it.
    """

    name: str
    revision: str | None = None
    member: str | None = None

    def __str__(self) -> str:
        return (
            f"hf:{self.name}"
            + (f"@{self.revision}" if self.revision else "")
            + (f"#{self.member}" if self.member else "")
        )


@dataclass(frozen=True)
class PathReference:
    """A folder or file on this machine; a relative one starts at the working folder."""

    path: Path

    def __str__(self) -> str:
        return f"path:{self.path}"


@dataclass(frozen=True)
class UrlReference:
    """One file of the web, named by where it is and what it is.

    `url` may have a password or a signature, with which it is fetched; the canonical text leaves them out.
    """

    url: str
    sha256: str

    def __str__(self) -> str:
        return f"url:{public_address(self.url)}#sha256={self.sha256}"


Reference = PypiReference | HubReference | PathReference | UrlReference


def parse(text: str) -> Reference:
    """The reference that a text means.

    `org/name` alone means `hf:org/name`, and a text that starts with `/`, `.` or `~` means `path:`.

    Raises:
        InputError: The text is no reference; the message says which part is wrong.
    """
    text = text.strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _PARSERS:
        if not rest:
            raise _wrong(text, f"nothing follows {scheme}:")
        return _PARSERS[scheme](text, rest)
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return _parse_path(text, text)
    if "/" in text and not colon and _REPOSITORY.fullmatch(text.partition("@")[0]):
        if Path(text).exists():
            raise InputError(
                f"{text!r} may be a folder here or a repository of the hub", f"write path:{text} or hf:{text}"
            )
        return _parse_hub(text, text)
    if colon and re.fullmatch(r"[A-Za-z]\w*", scheme):
        raise _wrong(text, f"{scheme}: is no kind of reference")
    raise _wrong(text, "it starts with no kind of reference")


def _parse_pypi(text: str, rest: str) -> PypiReference:
    requirement, hash_mark, fragment = rest.partition("#")
    package, equals, version = requirement.partition("==")
    if not equals:
        raise _wrong(text, "the version is missing: package==version")
    if not _PACKAGE.fullmatch(package):
        raise _wrong(text, f"{package!r} is no package name")
    try:
        Version(version)
    except InvalidVersion:
        raise _wrong(text, f"{version!r} is no exact version") from None
    member, marker, sha256 = fragment.partition("&sha256=")
    if not hash_mark or not member:
        raise _wrong(text, "the path in the wheel is missing: package==version#path/in/wheel")
    return PypiReference(
        canonicalize_name(package), version, inner_path(member, text), _sha256(text, sha256) if marker else None
    )


def _parse_hub(text: str, rest: str) -> HubReference:
    repository, hash_mark, member = rest.partition("#")
    name, at, revision = repository.partition("@")
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise _wrong(text, f"{name!r} is no repository: org/name")
    if at and (not revision or re.search(r"\s|\.\.|^[-/]", revision)):
        raise _wrong(text, f"{revision!r} is no revision")
    return HubReference(name, revision or None, inner_path(member, text) if hash_mark else None)


def _parse_path(text: str, rest: str) -> PathReference:
    if "\0" in rest:
        raise _wrong(text, "a path has no null character")
    try:
        return PathReference(Path(rest).expanduser())
    except RuntimeError as error:
        raise _wrong(text, str(error)) from None


def _parse_url(text: str, rest: str) -> UrlReference:
    url, hash_mark, fragment = rest.partition("#")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise _wrong(text, str(error)) from None
    if parts.scheme not in ("https", "http") or not host or re.search(r"\s", url):
        raise _wrong(text, "a url starts with https://host/")
    if not hash_mark or not fragment.startswith("sha256="):
        raise _wrong(text, "the content's hash is missing: #sha256=...")
    return UrlReference(url, _sha256(text, fragment.removeprefix("sha256=")))


_PARSERS: dict[str, Callable[[str, str], Reference]] = {
    "pypi": _parse_pypi,
    "hf": _parse_hub,
    "path": _parse_path,
    "url": _parse_url,
}


def inner_path(member: str, text: str) -> str:
    """A path inside a wheel or a repository, without a trailing slash.

    Raises:
        InputError: It is absolute, leaves its place with `..`, or is no posix path.
    """
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or "\0" in member or re.match(r"[A-Za-z]:", member):
        raise _wrong(text, f"{member!r} is no path inside it")
    if str(path) == ".":
        raise _wrong(text, "the path inside it is empty")
    return str(path)


def _sha256(text: str, digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise _wrong(text, f"{digest!r} is no sha256: 64 hexadecimal digits")
    return digest.lower()


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"{text!r} is no reference: {why}", "write " + ", or ".join(FORMS))
