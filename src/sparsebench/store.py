"""A results folder: one folder a cell, written aside and moved into place.

    RESULTS/suite.json                 the suite that was run, and its lock of hashes
    RESULTS/cells/<id>/spec.json       what the id is computed from
    RESULTS/cells/<id>/record.json     values, counters, provenance
    RESULTS/cells/<id>/env.json        where and with what
    RESULTS/cells/<id>/samples.parquet one row a sample

A run that is killed loses at most the cell in flight; a finished cell is never computed twice, and never replaced. Only
the run that computed it takes it back, where its method did not give the model back as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import from_json

from sparsebench import journal, leases
from sparsebench.errors import InputError, IntegrityError, StorageError
from sparsebench.identity import cell_id
from sparsebench.leases import leased
from sparsebench.packing import is_packed, unpacked
from sparsebench.plain_files import LINK, content_of
from sparsebench.records import CellRecord, CellSpec, Environment, NewerSchemaError, upgrade
from sparsebench.redaction import redacted
from sparsebench.remote import Remote, address
from sparsebench.sample_tables import LARGEST, read_table

if TYPE_CHECKING:
    import pandas as pd

AGAIN = "the file was cut short or edited; running the suite again computes the cell anew"
CELL_ID = re.compile(r"[0-9a-f]{16}")
ASIDE = re.compile(r"\.([0-9a-f]{16})-.+")
"""Folders of cells that are being written."""
SUITE = "0" * 16
"""What a run leases while it writes `suite.json`."""
PATIENCE = 0.05
"""Seconds between two attempts to lease it."""
ROOM = "make room or choose another folder with --out; the same command then goes on where this one stopped"


@dataclass(frozen=True)
class StoredCell:
    """One stored cell. Samples are read when asked for."""

    id: str
    spec: CellSpec
    record: CellRecord
    environment: Environment
    folder: Path

    def samples(self) -> pd.DataFrame | None:
        """Per-sample rows; None for a failed cell.

        Raises:
            IntegrityError: The file is missing, cut short or not the one that was recorded.
        """
        path = self.check_samples()
        return None if path is None else read_table(content_of(path, LARGEST), str(path)).to_pandas()

    def check_samples(self) -> Path | None:
        """The file of the samples, if it is the one that was recorded; None for a failed cell.

        Raises:
            IntegrityError: It is missing, cut short or another one.
        """
        recorded = self.record.samples_sha256
        if recorded is None:
            if self.record.outcome.status == "ok":
                raise IntegrityError(f"{self.folder / 'record.json'}: names no samples")
            return None
        path = self.folder / "samples.parquet"
        if path.is_symlink():
            raise IntegrityError(f"{path}: {LINK}")
        if not path.is_file():
            raise IntegrityError(f"{path}: missing, but the record says that there are samples", AGAIN)
        found = _sha256(path)
        if found != recorded:
            raise IntegrityError(f"{path}: sha256 {found[:12]}..., recorded {recorded[:12]}...", AGAIN)
        return path


class Store:
    """A results folder.

    Args:
        root: The folder; `create` makes it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    @cached_property
    def cells_folder(self) -> Path:
        """Where the cells are."""
        return self.root / "cells"

    @classmethod
    def create(cls, root: str | os.PathLike[str]) -> Store:
        """Make the folder if it is not there.

        Raises:
            StorageError: It cannot be written to.
            IntegrityError: It holds a link where a run writes.
        """
        store = cls(root)
        store._check_links()
        try:
            store.cells_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=store.cells_folder):
                pass
        except OSError as error:
            raise store._unwritable(error) from None
        return store

    def leased(self, identities: Iterable[str]) -> AbstractContextManager[frozenset[str]]:
        """Lease cells before they are computed; the context gives those that no other run has in hand."""
        return leased(self.cells_folder, identities)

    def sweep(self) -> None:
        """Remove what runs that were killed left half-written; what another run is writing now stays."""
        for name in os.listdir(self.cells_folder):
            if found := ASIDE.fullmatch(name):
                with self.leased([found[1]]) as mine:
                    if mine:
                        shutil.rmtree(self.cells_folder / name, ignore_errors=True)

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Store:
        """An existing results folder; a packed one is unpacked into the cache, one in an object store fetched there.

        Raises:
            InputError: There is none.
            IntegrityError: The packed file is damaged, or the folder holds a link where a run writes.
        """
        if (elsewhere := address(root)) is not None:
            root = Remote(elsewhere).mirror()
        store = cls(unpacked(Path(root)) if is_packed(root) else root)
        if not store.cells_folder.is_dir():
            raise InputError(
                f"{store.root} is no results folder", "it should hold a folder `cells`; see `sparsebench run`"
            )
        store._check_links()
        return store

    def _check_links(self) -> None:
        """What a run writes into must be in the folder; the folder itself may be a link.

        Raises:
            IntegrityError: There is a link.
        """
        for path in (self.cells_folder, self.cells_folder / journal.FILE, self.cells_folder / leases.FILE):
            if path.is_symlink():
                raise IntegrityError(f"{path}: {LINK}")

    def finished(self, identity: str) -> bool:
        """Whether that cell is stored whole with status `ok`; a failed or damaged one is computed again.

        Raises:
            NewerSchemaError: A newer SparseBench stored it.
        """
        if not (self.cells_folder / identity / "record.json").exists():
            return False
        try:
            cell = self.read(identity)
            cell.check_samples()
        except NewerSchemaError:
            raise
        except IntegrityError:
            return False
        return cell.record.outcome.status == "ok"

    def finished_among(self, identities: Iterable[str]) -> set[str]:
        """Which of some cells are finished; those that were found whole before are not read again.

        Raises:
            NewerSchemaError: A newer SparseBench stored one.
        """
        noted = journal.noted(self.cells_folder)
        known, checked = set(), []
        for identity in identities:
            if (was := noted.get(identity)) is not None and was == journal.signature(self.cells_folder / identity):
                known.add(identity)
            elif self.finished(identity):
                checked.append(identity)
        journal.note(self.cells_folder, checked)
        return known.union(checked)

    def recorded(self, identities: Iterable[str]) -> set[str]:
        """Which of some cells have a record, whatever it says."""
        return {identity for identity in identities if (self.cells_folder / identity / "record.json").exists()}

    def ids(self) -> list[str]:
        """Ids of all stored cells, sorted."""
        try:
            with os.scandir(self.cells_folder) as entries:
                return sorted(entry.name for entry in entries if CELL_ID.fullmatch(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, identity: str) -> StoredCell:
        """One stored cell.

        Raises:
            IntegrityError: A file is missing or cut short, or the id is not that of the specification.
        """
        folder = self.cells_folder / identity
        path = str(folder)  # paths as text: a report of many cells opens three files of each
        if os.path.islink(path):
            raise IntegrityError(f"{path}/record.json: the folder {LINK}")
        record = upgrade(_read_json(f"{path}/record.json"), f"{path}/record.json")
        plain = _read_json(f"{path}/spec.json")
        computed = cell_id(plain)
        if computed != identity:
            raise IntegrityError(f"{path}/spec.json: describes cell {computed}, not {identity}")
        try:
            spec = CellSpec.model_validate(plain)
            environment = Environment.model_validate(_read_json(f"{path}/env.json"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(f"{folder}: {where}: {first['msg']}") from None
        if record.cell != identity:
            raise IntegrityError(f"{folder / 'record.json'}: is the record of cell {record.cell}")
        return StoredCell(identity, spec, record, environment, folder)

    def damaged(self) -> list[str]:
        """For each cell that cannot be read whole, what is wrong with it."""
        found = []
        for identity in self.ids():
            try:
                self.read(identity).check_samples()
            except IntegrityError as error:
                found.append(error.message)
        return found

    def __iter__(self) -> Iterator[StoredCell]:
        return (self.read(identity) for identity in self.ids())

    def write(
        self, spec: CellSpec, record: CellRecord, environment: Environment, samples: pd.DataFrame | None
    ) -> StoredCell:
        """Store a cell; all of its files appear at once. A failed or damaged one is replaced, a finished cell stays.

        Raises:
            IntegrityError: The record is not that of the specification.
            StorageError: The folder cannot be written to.
        """
        plain = spec.plain()
        identity = cell_id(plain)
        if identity != record.cell:
            raise IntegrityError(f"record of cell {record.cell} with the specification of {identity}")
        place = self.cells_folder / identity
        try:
            self.cells_folder.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{identity}-", dir=self.cells_folder))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if samples is not None:
                with (aside / "samples.parquet").open("xb") as file:  # of a path pandas would expand a tilde
                    samples.to_parquet(file, index=False)
                _sync(aside / "samples.parquet")
                record = record.model_copy(update={"samples_sha256": _sha256(aside / "samples.parquet")})
            write_json(aside / "spec.json", plain)
            write_json(aside / "env.json", redacted(environment.model_dump(mode="json")))
            write_json(aside / "record.json", redacted(record.model_dump(mode="json")))
            if self.finished(identity):
                return self.read(identity)  # another run was faster
            _move_into_place(aside, place)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if record.outcome.status == "ok":
            journal.note(self.cells_folder, [identity])
        return StoredCell(identity, spec, record, environment, place)

    def withdraw(self, identity: str) -> None:
        """Take a cell back that its own run has found to be wrong; it can then be stored as failed.

        Raises:
            StorageError: The folder cannot be written to.
        """
        try:
            aside = Path(tempfile.mkdtemp(prefix=f".{identity}-", dir=self.cells_folder))
            (self.cells_folder / identity).replace(aside / identity)
        except OSError as error:
            raise self._unwritable(error) from error
        shutil.rmtree(aside, ignore_errors=True)

    def write_suite(self, data: dict[str, Any]) -> None:
        """Store the suite and its lock of hashes.

        Raises:
            StorageError: The folder cannot be written to.
        """
        while True:
            with self.leased([SUITE]) as mine:
                if mine:
                    try:
                        for half_written in self.root.glob(".suite.json-*"):
                            half_written.unlink()
                        write_json(self.root / "suite.json", redacted(data))
                    except OSError as error:
                        raise self._unwritable(error) from error
                    return
            time.sleep(PATIENCE)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write results to {self.root}: {error.strerror or error}", ROOM)

    def suite(self) -> dict[str, Any]:
        """The suite and its lock; empty for a folder without one."""
        path = self.root / "suite.json"
        return _read_json(path) if os.path.lexists(path) else {}


def write_json(path: Path, data: object) -> None:
    """Write JSON aside and move it into place; sorted keys, so that equal data are equal bytes."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    aside = path.with_name(f".{path.name}-{token_hex(6)}")
    try:
        # Paths of this machine need not be in UTF-8.
        with aside.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def _sync(path: Path) -> None:
    """To the disk, before the folder it is in gets the name that says it is whole."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move_into_place(aside: Path, place: Path) -> None:
    aside.chmod(0o755)
    try:
        aside.replace(place)
        return
    except OSError:
        if not place.exists():
            raise
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    try:
        earlier = place.replace(old / place.name)
        try:
            aside.replace(place)
        except BaseException:
            if not place.exists():
                earlier.replace(place)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


_DIGITS = re.compile(rb"[0-9]{300}")
"""What a file holds that has a whole number beyond all floats."""


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = content_of(path)
    except OSError as error:
        raise IntegrityError(
            f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}", AGAIN
        ) from None
    try:
        data = from_json(content, allow_inf_nan=False)
    except ValueError:
        data = _read_slowly(content, path)
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: not a JSON object")
    if _DIGITS.search(content):
        _check_numbers(data, path)
    return data


def _check_numbers(value: Any, path: str | Path) -> None:
    """Refuse whole numbers that no float holds, wherever they stand: nothing that is counted is as large."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_numbers(part, path)
    elif isinstance(value, int) and value.bit_length() > 1023:
        raise IntegrityError(f"{path}: a whole number of {value.bit_length()} bits", AGAIN)


def _read_slowly(content: bytes, path: str | Path) -> Any:
    """What the fast parser refused: the other one has the last word, and says where it is wrong."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not JSON ({error})", AGAIN) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
