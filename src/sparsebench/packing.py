"""A results folder in one file: for publishing, submitting, and keeping results beside code.

    NAME.tar.xz
        suite.json
        cells/<id>/{spec,record,env}.json, samples.parquet

Files are in the order of tasks, so that what cells of a task share is stored about once. Long answers may be left out
of tasks with many samples: each record then names the columns that are gone, and its hash is that of what stays. Floats
may be rounded to some bits of their fraction, since the rest is noise that no packing makes small; the record says so.
Wherever a results folder is read, such a file may be named; it is unpacked into the cache, once.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sparsebench.errors import InputError, IntegrityError, StorageError
from sparsebench.plain_files import content_of
from sparsebench.sample_tables import LARGEST as MEMORY
from sparsebench.sample_tables import read_table, shortened

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from sparsebench.store import Store, StoredCell

    FloatArray = npt.NDArray[np.floating]

SUFFIX = ".tar.xz"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
"""Bytes are guessed from more of the one before them, and from no place of four: a twentieth less than as it comes."""
FEW = {"text": 256, "number": 16}
"""Different values of a column up to which they are numbered: of texts a byte each, of numbers some bits."""
KEPT_TEXT = frozenset({"sample", "cluster"})
"""Columns of text without which samples can be neither paired nor resampled."""
MEMBER = re.compile(r"suite\.json|cells/[0-9a-f]{16}/(?:spec\.json|record\.json|env\.json|samples\.parquet)")
LARGEST = 8 * 2**30
"""Bytes that a packed file may unpack to."""
MOST = 1_000_000
"""Files that a packed file may hold."""
PADDING = 1 << 16
"""Bytes of zeros that may follow the last member."""
HEADERS = 1 << 20
"""Bytes of headers that may stand before a file."""
CONTENTS = ".unpacked.json"
"""What was unpacked, with sizes and times; written last, in the cache only."""


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        path: The file.
        cells: How many cells it holds.
        size: Its bytes.
        without_text: Cells whose answers were left out.
    """

    path: Path
    cells: int
    size: int
    without_text: int


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a packed results file."""
    return str(path).endswith(SUFFIX) and Path(path).is_file()


def pack(store: Store, out: Path, text_up_to: int | None = None, bits: int | None = None) -> Packed:
    """Write a results folder into one file; equal folders give equal bytes.

    Args:
        store: The folder.
        out: The file, ending in `.tar.xz`; it appears when it is whole.
        text_up_to: Keep answers of cells with at most so many samples; None: of all.
        bits: Keep so many bits of the fraction of each float of the samples; None: all 52. With 16 a value is off by at
            most 8e-6 of itself.

    Raises:
        InputError: Another ending, or no cells.
        IntegrityError: A cell cannot be read whole.
        StorageError: The file cannot be written.
    """
    if not out.name.endswith(SUFFIX):
        raise InputError(f"{out}: a packed results file ends in {SUFFIX}")
    cells = sorted(store, key=lambda cell: (cell.spec.task.id, cell.record.placement.label, cell.id))
    if not cells:
        raise InputError(f"{store.root} holds no cells")
    shortened = 0
    aside = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        with lzma.open(aside, "wb", filters=FILTERS) as file, tarfile.open(fileobj=file, mode="w") as archive:
            suite = store.root / "suite.json"
            if suite.is_file():
                _add(archive, "suite.json", content_of(suite))
            for cell in cells:
                files = dict(_files(cell, text_up_to, bits))
                shortened += bool(json.loads(files["record.json"]).get("left_out"))
                for name, content in files.items():
                    _add(archive, f"cells/{cell.id}/{name}", content)
        aside.replace(out)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink()
    return Packed(out, len(cells), out.stat().st_size, shortened)


def _files(cell: StoredCell, text_up_to: int | None, bits: int | None) -> Iterator[tuple[str, bytes]]:
    """The files of a cell as they are packed."""
    for name in ("spec.json", "env.json"):
        yield name, content_of(cell.folder / name)
    record = content_of(cell.folder / "record.json")
    path = cell.check_samples()
    if path is None:
        yield "record.json", record
        return
    samples, gone = _plain(content_of(path, MEMORY), text_up_to, bits)
    plain = json.loads(record) | {"samples_sha256": hashlib.sha256(samples).hexdigest()}
    if gone:
        plain["left_out"] = gone
    if bits is not None:
        plain["rounded_bits"] = min(bits, plain.get("rounded_bits") or bits)
    yield "record.json", (json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    yield "samples.parquet", samples


def _plain(content: bytes, most: int | None, bits: int | None) -> tuple[bytes, list[str]]:
    """Samples in plain pages, without their texts where there are more than `most`; and the columns that are gone.

    What cells have in common is found by the packing, where pages do not hide it: a third of the size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = read_table(content, "samples.parquet")
    gone = [
        field.name
        for field in table.schema
        if (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)) and field.name not in KEPT_TEXT
    ]
    if most is None or table.num_rows <= most:
        gone = []
    table = table.drop_columns(gone)
    for place, field in enumerate(table.schema):
        if bits is not None and pa.types.is_floating(field.type):
            rounded = pa.array(round_fraction(table.column(place).to_numpy(), bits), field.type, from_pandas=True)
            table = table.set_column(place, field, rounded)
    table = shortened(table)
    repeated = [name for name in table.column_names if _comes_again(table.column(name))]
    others = [name for name in table.column_names if name not in repeated]
    floats = [name for name in others if _in_few_bytes(table.column(name))]
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=repeated, use_byte_stream_split=floats)
    return sink.getvalue(), gone


def _in_few_bytes(column: pa.ChunkedArray) -> bool:
    """Whether it has floats of few digits: byte by byte they are found again sooner, others only as a whole."""
    import pyarrow as pa

    if not pa.types.is_float64(column.type):
        return False
    return not bool((column.to_numpy().view("uint64") & 0xFFFFFFFF).any())


def _comes_again(column: pa.ChunkedArray) -> bool:
    """Whether it has few different values, which are then numbered: right and wrong are a bit."""
    import pyarrow as pa

    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return (text or number) and len(column.unique()) <= FEW["text" if text else "number"]


def round_fraction(values: FloatArray, bits: int) -> FloatArray:
    """Floats with so many bits of their fraction, to the nearest; NaN and infinities stay."""
    import numpy as np

    fraction, exponent = np.frexp(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, bits + 1)), exponent - bits - 1), dtype=values.dtype)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def unpacked(path: Path, cache: Path | None = None) -> Path:
    """The folder with what a packed file holds, in the cache.

    Args:
        path: The packed file.
        cache: Where to unpack to; None: the cache of SparseBench.

    Raises:
        IntegrityError: It is no packed results file, or holds what none of them holds.
        StorageError: The cache cannot be written.
    """
    from sparsebench.data.cache import cache_folder

    try:
        with path.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        place = (cache or cache_folder()) / "unpacked" / f"{name[:32]}-2"
        if _as_unpacked(place):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=place.parent))
        if place.exists():  # some of it was removed or changed, as cleaners of caches do
            with suppress(FileNotFoundError):  # another process saw it too
                place.replace(aside / "harmed")
    except OSError as error:
        raise StorageError(f"cannot unpack {path}: {error.strerror or error}") from None
    try:
        (aside / "whole").mkdir()
        _unpack(path, aside / "whole")
        with suppress(OSError):  # another process was faster
            (aside / "whole").replace(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place


def _as_unpacked(place: Path) -> bool:
    """Whether a folder of the cache still holds what was unpacked there, untouched."""
    try:
        contents = json.loads((place / CONTENTS).read_bytes())
        return bool(contents) and all(_state(place / name) == state for name, state in contents.items())
    except (OSError, ValueError, RecursionError, AttributeError):
        return False


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _at_end(file: BinaryIO, path: Path) -> None:
    """Nothing but padding may follow: tarfile takes a damaged header for the end, and checksums are found at the end.

    Raises:
        IntegrityError: Something follows.
        lzma.LZMAError: A checksum is another one.
    """
    room = PADDING
    while chunk := file.read(PADDING):
        room -= len(chunk)
        if room < 0 or chunk.strip(b"\0"):
            raise IntegrityError(f"{path}: not a whole packed results file (something follows its last whole member)")


class _Metered:
    """A stream that gives no more than is expected of it: a header may declare gigabytes, and is read at once."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.left = HEADERS
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise IntegrityError(f"{self.path}: more than {HEADERS >> 20} MiB of headers before a file")
        return self.stream.read(size)


def _unpack(path: Path, place: Path) -> None:
    (place / "cells").mkdir()
    room, names = LARGEST, []
    try:
        with lzma.open(path) as file:
            stream = _Metered(cast("BinaryIO", file), path)
            archive = tarfile.open(fileobj=cast("Any", stream), mode="r:")
            while (member := archive.next()) is not None:
                names.append(member.name)
                room -= member.size
                if not member.isreg() or member.issparse() or not MEMBER.fullmatch(member.name):
                    raise IntegrityError(f"{path}: holds {member.name!r}, which is not part of results")
                if room < 0 or len(names) > MOST:
                    raise IntegrityError(f"{path}: unpacks to more than {LARGEST >> 30} GiB or {MOST} files")
                stream.left = member.size + HEADERS
                content = archive.extractfile(member)
                target = place / member.name
                target.parent.mkdir(exist_ok=True)
                if content is None or target.exists():
                    raise IntegrityError(f"{path}: holds {member.name!r} twice")
                with target.open("xb") as written:
                    shutil.copyfileobj(content, written)
            _at_end(cast("BinaryIO", file), path)
        states = {name: _state(place / name) for name in names}
        (place / CONTENTS).write_text(json.dumps(states), encoding="utf-8")
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise IntegrityError(f"{path}: not a whole packed results file ({error})") from None
    except OSError as error:
        raise StorageError(f"cannot unpack {path}: {error.strerror or error}") from None
