"""A results folder: one folder a cell, written aside and moved into place.

    RESULTS/suite.json                 the suite that was run, and its lock of hashes
    RESULTS/cells/<id>/spec.json       what the id is computed from
    RESULTS/cells/<id>/record.json     values, counters, provenance
    RESULTS/cells/<id>/env.json        where and with what
    RESULTS/cells/<id>/samples.parquet one row a sample

A run that is killed loses at most the cell in flight; a finished cell is never computed twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sparsebench.errors import InputError, IntegrityError
from sparsebench.identity import cell_id
from sparsebench.records import CellRecord, CellSpec, Environment, NewerSchemaError, upgrade

if TYPE_CHECKING:
    import pandas as pd

AGAIN = "the file was cut short or edited; running the suite again computes the cell anew"
CELL_ID = re.compile(r"[0-9a-f]{16}")


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
        import pandas as pd

        path = self.check_samples()
        return None if path is None else pd.read_parquet(path)

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

    @property
    def cells_folder(self) -> Path:
        """Where the cells are."""
        return self.root / "cells"

    @classmethod
    def create(cls, root: str | os.PathLike[str]) -> Store:
        """Make the folder if it is not there.

        Raises:
            InputError: It cannot be written to.
        """
        store = cls(root)
        try:
            store.cells_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=store.cells_folder):
                pass
        except OSError as error:
            raise InputError(f"cannot write results to {store.root}: {error.strerror}") from None
        return store

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Store:
        """An existing results folder.

        Raises:
            InputError: There is none.
        """
        store = cls(root)
        if not store.cells_folder.is_dir():
            raise InputError(
                f"{store.root} is no results folder", "it should hold a folder `cells`; see `sparsebench run`"
            )
        return store

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

    def ids(self) -> list[str]:
        """Ids of all stored cells, sorted."""
        if not self.cells_folder.is_dir():
            return []
        return sorted(p.name for p in self.cells_folder.iterdir() if CELL_ID.fullmatch(p.name) and p.is_dir())

    def read(self, identity: str) -> StoredCell:
        """One stored cell.

        Raises:
            IntegrityError: A file is missing or cut short, or the id is not that of the specification.
        """
        folder = self.cells_folder / identity
        record = upgrade(_read_json(folder / "record.json"), str(folder / "record.json"))
        plain = _read_json(folder / "spec.json")
        computed = cell_id(plain)
        if computed != identity:
            raise IntegrityError(f"{folder / 'spec.json'}: describes cell {computed}, not {identity}")
        try:
            spec = CellSpec.model_validate(plain)
            environment = Environment.model_validate(_read_json(folder / "env.json"))
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
        """Store a cell; all of its files appear at once, replacing an earlier attempt."""
        plain = spec.plain()
        identity = cell_id(plain)
        if identity != record.cell:
            raise IntegrityError(f"record of cell {record.cell} with the specification of {identity}")
        try:
            self.cells_folder.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{identity}-", dir=self.cells_folder))
        except OSError as error:
            raise InputError(f"cannot write results to {self.root}: {error.strerror}") from error
        try:
            if samples is not None:
                samples.to_parquet(aside / "samples.parquet", index=False)
                record = record.model_copy(update={"samples_sha256": _sha256(aside / "samples.parquet")})
            write_json(aside / "spec.json", plain)
            write_json(aside / "env.json", environment.model_dump(mode="json"))
            write_json(aside / "record.json", record.model_dump(mode="json"))
            _move_into_place(aside, self.cells_folder / identity)
        except OSError as error:
            raise InputError(f"cannot write cell {identity} to {self.root}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return StoredCell(identity, spec, record, environment, self.cells_folder / identity)

    def write_suite(self, data: dict[str, Any]) -> None:
        """Store the suite and its lock of hashes."""
        try:
            write_json(self.root / "suite.json", data)
        except OSError as error:
            raise InputError(f"cannot write results to {self.root}: {error.strerror}") from error

    def suite(self) -> dict[str, Any]:
        """The suite and its lock; empty for a folder without one."""
        path = self.root / "suite.json"
        return _read_json(path) if path.exists() else {}


def write_json(path: Path, data: object) -> None:
    """Write JSON aside and move it into place; sorted keys, so that equal data are equal bytes."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _move_into_place(aside: Path, place: Path) -> None:
    aside.chmod(0o755)
    try:
        aside.replace(place)
        return
    except OSError:
        if not place.exists():
            raise
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    earlier = place.replace(old / place.name)
    try:
        aside.replace(place)
    except BaseException:
        earlier.replace(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise IntegrityError(
            f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}", AGAIN
        ) from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not JSON ({error})", AGAIN) from None
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: not a JSON object")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
