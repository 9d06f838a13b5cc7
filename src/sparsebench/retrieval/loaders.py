"""Reading collections: folders in BEIR form, and BEIR data sets of the Hugging Face hub.

A folder has `corpus.jsonl` and `queries.jsonl` (either may be gzipped) and `qrels/<split>.tsv`. Judgements may have a
header line, in BEIR's three columns or TREC's four. Whatever cannot be read is an error that names file and line: a
judgement that is lost silently is a wrong figure.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.data.digests import sha256_file
from sparsebench.data.hub import fetch_snapshot
from sparsebench.errors import InputError, MissingError, StorageError
from sparsebench.retrieval.collection import Collection, FieldPolicy, GradePolicy

_GRADE_HEADERS = frozenset({"score", "grade", "relevance", "rel", "label"})
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|nan|[+-]?inf", re.ASCII)
_Value = TypeVar("_Value")
LARGEST = 64 * 2**30
"""Bytes that an archive may unpack to."""
MOST = 100_000
"""Files that an archive may hold."""


def load_beir(
    folder: Path,
    *,
    split: str = "test",
    name: str | None = None,
    field_policy: FieldPolicy = "title_text",
    grade_policy: GradePolicy = "plain",
    drop_identical_ids: bool = False,
) -> Collection:
    """The collection of a folder in BEIR form.

    Args:
        folder: Holds `corpus.jsonl[.gz]`, `queries.jsonl[.gz]` and `qrels/<split>.tsv`.
        split: Which judgements.
        name: The collection's name; the folder's when not given.
        field_policy: See `Collection`.
        grade_policy: See `Collection`.
        drop_identical_ids: See `Collection`.

    Raises:
        MissingError: A file is not there.
        InputError: A line cannot be read, an id comes twice, or a judged query has no text.
    """
    judgements = folder / "qrels" / f"{split}.tsv"
    if not judgements.is_file():
        splits = ", ".join(sorted(path.stem for path in judgements.parent.glob("*.tsv")))
        raise MissingError(f"no such file: {judgements}", f"splits found: {splits or 'none'}")
    queries = _by_id(_rows(_find(folder, "queries.jsonl")), lambda row: _text(row, "text", required=True))
    corpus = _by_id(
        _rows(_find(folder, "corpus.jsonl")),
        lambda row: {"title": _text(row, "title"), "text": _text(row, "text", required=True)},
    )
    return Collection.from_dicts(
        name or folder.name,
        corpus,
        queries,
        _grades(_judgements(judgements), queries, grade_policy),
        split=split,
        field_policy=field_policy,
        grade_policy=grade_policy,
        drop_identical_ids=drop_identical_ids,
        source=f"folder:{folder.name}",
    )


def load_hub(
    repository: str,
    *,
    split: str = "test",
    revision: str | None = None,
    qrels_repository: str | None = None,
    qrels_revision: str | None = None,
    name: str | None = None,
    field_policy: FieldPolicy = "title_text",
    grade_policy: GradePolicy = "plain",
    drop_identical_ids: bool = False,
) -> Collection:
    """A collection of the Hugging Face hub: `BeIR/scifact` with `BeIR/scifact-qrels`, or `mteb/scifact` for both.

    Args:
        repository: The data set with the configurations `corpus` and `queries`; a local folder of that form will do.
        split: Which judgements.
        revision: Commit of the data set; the newest when not given. The commit stands in the `source`.
        qrels_repository: The data set with the judgements; `<repository>-qrels` when not given and the owner is `BeIR`,
            otherwise the default configuration of `repository`.
        qrels_revision: Commit of `qrels_repository`.
        name: The collection's name; the data set's when not given.
        field_policy: See `Collection`.
        grade_policy: See `Collection`.
        drop_identical_ids: See `Collection`.

    Raises:
        MissingError: The data set, a configuration or the split is not to be had.
        InputError: As for `load_beir`, with the row in place of the line.
    """
    folder, source = _snapshot(repository, revision)
    judged_folder = folder
    if qrels_repository is None and repository.startswith("BeIR/"):
        qrels_repository = f"{repository}-qrels"
    if qrels_repository is not None:
        judged_folder, judged_source = _snapshot(qrels_repository, qrels_revision)
        source = f"{source} {judged_source}"
    queries = _by_id(_hub_rows(folder, "queries", "queries"), lambda row: _text(row, "text", required=True))
    corpus = _by_id(
        _hub_rows(folder, "corpus", "corpus"),
        lambda row: {"title": _text(row, "title"), "text": _text(row, "text", required=True)},
    )
    rows = _hub_rows(judged_folder, "default", split)
    judgements = ((place, str(row["query-id"]), str(row["corpus-id"]), row["score"]) for place, row in rows)
    return Collection.from_dicts(
        name or Path(repository).name,
        corpus,
        queries,
        _grades(judgements, queries, grade_policy),
        split=split,
        field_policy=field_policy,
        grade_policy=grade_policy,
        drop_identical_ids=drop_identical_ids,
        source=source,
    )


def unpacked(archive: Path) -> Path:
    """The folder in BEIR form that a zip archive holds, as BEIR's own are; unpacked once, into the cache.

    Raises:
        InputError: It is no zip archive that can be read, or does not hold one `corpus.jsonl`.
        StorageError: There is no room for what it holds.
    """
    target = cache_folder() / "collections" / sha256_file(archive)
    if not target.is_dir():
        with staging(target.parent) as folder:
            (folder / "archive").mkdir()
            try:
                with zipfile.ZipFile(archive) as members:
                    _check_size(archive.name, members.infolist(), shutil.disk_usage(folder).free)
                    members.extractall(folder / "archive")
            # An encrypted member is a RuntimeError, an unknown compression a NotImplementedError.
            except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError, ValueError) as error:
                raise InputError(f"{archive.name}: {error}", "BEIR's collections are plain zip archives") from error
            publish(folder / "archive", target)
    found = sorted({path.parent for name in ("corpus.jsonl", "corpus.jsonl.gz") for path in target.rglob(name)})
    if len(found) != 1:
        raise InputError(f"{archive.name} holds {len(found)} files corpus.jsonl", "it should hold one collection")
    return found[0]


def _check_size(name: str, members: list[zipfile.ZipInfo], free: int) -> None:
    size = sum(member.file_size for member in members)
    if size > LARGEST or len(members) > MOST:
        raise InputError(
            f"{name}: unpacks to {size:,} bytes in {len(members):,} files",
            f"at most {LARGEST >> 30} GiB in {MOST:,} files are unpacked; unpack it yourself and name the folder",
        )
    if size > free:
        raise StorageError(f"{name}: unpacks to {size:,} bytes, and {cache_folder()} has room for {free:,}")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise MissingError(
        f"no such file: {folder / name}", "a folder in BEIR form has corpus.jsonl, queries.jsonl and qrels/"
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with `file:line`."""
    opened = gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")
    number = 0
    with opened as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\n")
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise InputError(f"{path}:{number + 1}: {error}", "the file must be whole and in UTF-8") from error


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError too
            raise InputError(f"{place}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: not a JSON object")
        yield place, row


def _by_id(
    rows: Iterable[tuple[str, Mapping[str, Any]]], read: Callable[[Mapping[str, Any]], _Value]
) -> dict[str, _Value]:
    records: dict[str, _Value] = {}
    for place, row in rows:
        identifier = row.get("_id", row.get("id"))
        if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
            raise InputError(f"{place}: there is no _id")
        if str(identifier) in records:
            raise InputError(f"{place}: the id {str(identifier)!r} comes a second time")
        try:
            records[str(identifier)] = read(row)
        except InputError as error:
            raise InputError(f"{place}: {error.message}") from error
    return records


def _text(row: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    if required and key not in row:
        raise InputError(f"there is no {key!r}")
    value = row.get(key)
    if not isinstance(value, str | None):
        raise InputError(f"{key!r} is not a string")
    return value or ""


def _judgements(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """`(file:line, query, document, grade)` of a qrels file."""
    for number, (place, line) in enumerate(_lines(path)):
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) not in (3, 4):
            raise InputError(
                f"{place}: {len(fields)} columns", "query, document, grade; or TREC's query, 0, document, grade"
            )
        if number == 0 and fields[-1].strip().lower() in _GRADE_HEADERS:
            continue
        yield place, fields[0], fields[-2], fields[-1].strip()


def _grades(
    judgements: Iterable[tuple[str, str, str, str | float]], queries: Mapping[str, str], policy: GradePolicy
) -> dict[str, dict[str, int]]:
    """Judgements by query and document; a repeated one must agree with the first."""
    qrels: dict[str, dict[str, int]] = {}
    for place, qid, doc, written in judgements:
        try:
            if isinstance(written, str) and not _NUMBER.fullmatch(written):
                raise ValueError
            grade = float(written)
        except (TypeError, ValueError):
            raise InputError(f"{place}: the grade {written!r} is not a number") from None
        if not grade.is_integer():
            raise InputError(f"{place}: the grade {written!r} is not an integer", "trec_eval knows integer grades only")
        if grade < 0 and policy == "plain":
            raise InputError(
                f"{place}: the grade {written} is negative",
                "say what it means: grade policy negative_best (Cranfield) or negative_zero (TREC)",
            )
        if qid not in queries:
            raise InputError(f"{place}: query {qid!r} is judged but has no text")
        if qrels.setdefault(qid, {}).setdefault(doc, int(grade)) != int(grade):
            raise InputError(f"{place}: document {doc!r} has a second, other grade for query {qid!r}")
    return qrels


def _snapshot(repository: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a data set, and its reference with the commit."""
    if Path(repository).is_dir():
        return Path(repository), f"folder:{Path(repository).name}"
    folder = fetch_snapshot(repository, revision, kind="dataset")
    return folder, f"hf:{repository}@{folder.name}"


def _hub_rows(folder: Path, config: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from datasets import load_dataset

    try:
        table = load_dataset(str(folder), config, split=split)
    except (ValueError, OSError) as error:
        raise MissingError(f"data set {folder} has no configuration {config!r}, split {split!r}: {error}") from error
    for number, row in enumerate(table):
        yield f"{folder} {config} row {number}", row
