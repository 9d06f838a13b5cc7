"""Rows and text of data files: .json, .jsonl, .csv, .tsv, .txt (each also as .gz or .bz2) and .parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsebench.errors import InputError, IntegrityError, MissingError

Row = dict[str, Any]


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in .gz or .bz2.

    Raises:
        MissingError: No such file.
        IntegrityError: The compressed file is cut short or damaged.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        if path.suffix == ".bz2":
            with bz2.open(path) as file:
                return file.read()
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        raise IntegrityError(f"{path} is cut short or damaged: {error}", "get the file again") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, decompressed; line ends become line feeds.

    Raises:
        MissingError: No such file.
        IntegrityError: As `read_bytes`, or the bytes are no UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise IntegrityError(f"{path}:{line}: no UTF-8: {error.reason}", "data files are UTF-8") from error
    return text.replace("\r\n", "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: It is no JSON.
        IntegrityError: As `read_text`.
    """
    try:
        return json.loads(read_text(path), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {error}") from error


def read_rows(path: Path, *, key: str | None = None, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of a data file, in order.

    Args:
        path: Its ending says how it is read. A .json file is a list of objects; a .jsonl file has one object a line,
            empty lines apart; .csv and .tsv files have their column names in the first line; a .txt file gives one row
            `{"text": line}` for each line.
        key: Where the list is, in a .json file that is an object.
        columns: Column names of a .csv or .tsv file without a first line of names.

    Raises:
        MissingError: No such file.
        InputError: The ending is unknown, or a line is wrong; the message names file and line.
        IntegrityError: The file is damaged.
    """
    ending = data_ending(path)
    if ending == ".json":
        return _json_rows(path, key)
    if ending in (".jsonl", ".ndjson"):
        return list(_jsonl_rows(path))
    if ending in (".csv", ".tsv"):
        return list(_csv_rows(path, columns, "\t" if ending == ".tsv" else ","))
    if ending == ".txt":
        return [{"text": line} for line in _lines(path)]
    if ending == ".parquet":
        return _parquet_rows(path)
    raise InputError(f"{path}: unknown ending {ending!r}", "readable are .json, .jsonl, .csv, .tsv, .txt, .parquet")


def data_ending(path: Path) -> str:
    """The ending that says how a file is read: `.jsonl` of `a.jsonl.gz`."""
    return path.with_suffix("").suffix.lower() if path.suffix in (".gz", ".bz2") else path.suffix.lower()


def _lines(path: Path) -> list[str]:
    """Lines without their ends. Only a line feed ends one: str.splitlines would also cut at form feeds and U+2028."""
    text = read_text(path)
    lines = text.split("\n")
    return lines[:-1] if text.endswith("\n") or not text else lines


def _json_rows(path: Path, key: str | None) -> list[Row]:
    content = read_json(path)
    if isinstance(content, dict):
        if key is None or key not in content:
            wanted = "is an object, not a list of rows" if key is None else f"has no {key!r}"
            raise InputError(f"{path} {wanted}", f"its keys are {', '.join(map(repr, list(content)[:12]))}")
        content = content[key]
    elif key is not None:
        raise InputError(f"{path} is no object with a key {key!r}")
    if not isinstance(content, list):
        raise InputError(f"{path}: the rows are a {type(content).__name__}, not a list")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number} is a {type(row).__name__}, not an object")
    return content


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{path}:{number}: no JSON: {reason}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a {type(row).__name__}, not an object")
        yield row


def _csv_rows(path: Path, columns: Sequence[str] | None, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    names = list(columns) if columns is not None else None
    try:
        for cells in reader:
            if not cells:
                continue
            if names is None:
                names = cells
                if len(set(names)) != len(names):
                    raise InputError(f"{path}:{reader.line_num}: a column name occurs twice")
                continue
            if len(cells) != len(names):
                raise InputError(f"{path}:{reader.line_num}: {len(cells)} cells, but {len(names)} columns")
            yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: no CSV: {error}") from error


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "get the file again") from error
    return rows


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
