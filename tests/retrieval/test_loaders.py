"""Folders in BEIR form: everything that is there is read, and what cannot be read is named by file and line."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from sparsebench.errors import InputError, MissingError, StorageError
from sparsebench.retrieval import loaders
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.loaders import load_beir, load_hub, unpacked

CORPUS = [{"_id": f"d{n}", "title": f"title {n}", "text": f"text {n}"} for n in range(4)]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "three"}]
HEADER = "query-id\tcorpus-id\tscore\n"
JUDGEMENTS = "q1\td0\t1\nq1\td1\t2\nq2\td2\t1\n"


def folder(path: Path, qrels: str = HEADER + JUDGEMENTS, corpus: str = "", queries: str = "") -> Path:
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    (path / "corpus.jsonl").write_text(corpus or "".join(json.dumps(row) + "\n" for row in CORPUS), encoding="utf-8")
    (path / "queries.jsonl").write_text(queries or "".join(json.dumps(row) + "\n" for row in QUERIES), encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return path


def test_a_folder_gives_its_judged_queries(tmp_path: Path) -> None:
    collection = load_beir(folder(tmp_path / "toy"))
    assert collection.name == "toy"
    assert list(collection.query_ids) == ["q1", "q2"]
    assert collection.qrels == {"q1": {"d0": 1, "d1": 2}, "q2": {"d2": 1}}
    assert collection.documents()[3] == "title 3 text 3"


@pytest.mark.parametrize(
    "qrels",
    [
        JUDGEMENTS,  # no header: BEIR's loader loses the first row
        HEADER + JUDGEMENTS.replace("\n", "\r\n"),
        "\ufeff" + JUDGEMENTS,
        HEADER + JUDGEMENTS.replace("\t1\n", "\t1.0\n"),  # integral floats: BEIR's loader crashes
        "".join(f"{q} 0 {d} {g}\n" for q, d, g in (line.split() for line in JUDGEMENTS.splitlines())),
        HEADER + JUDGEMENTS + "\n\n",
        HEADER + JUDGEMENTS + "q2\td2\t1\n",  # the same judgement twice
    ],
)
def test_other_spellings_of_the_same_judgements(tmp_path: Path, qrels: str) -> None:
    assert load_beir(folder(tmp_path, qrels)).content_hash == load_beir(folder(tmp_path / "plain")).content_hash


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy")
    plain = load_beir(path)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (path / f"{name}.gz").write_bytes(gzip.compress((path / name).read_bytes()))
        (path / name).unlink()
    assert load_beir(path).content_hash == plain.content_hash


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (HEADER + "q1\td0\t0.5\n", r"test\.tsv:2: the grade '0\.5' is not an integer"),
        (HEADER + "q1\td0\t1_0\n", r"test\.tsv:2: the grade '1_0' is not a number"),
        (HEADER + "q1 \td0\t1\n", r"test\.tsv:2: query 'q1 ' is judged but has no text"),
        (HEADER + "q1\t d0\t1\n", r"the judgements say ' d0', the corpus 'd0'"),
        (HEADER + "q1\td0\t1\nq2\tD2\t1\n", r"the judgements say 'D2', the corpus 'd2'"),
        (HEADER + "q1\td0\thigh\n", r"test\.tsv:2: the grade 'high' is not a number"),
        (HEADER + "q1\td0\tnan\n", r"test\.tsv:2: the grade 'nan' is not an integer"),
        (HEADER + "q1\td0\t1\nq1\td1\t-1\n", r"test\.tsv:3: the grade -1 is negative"),
        (HEADER + "q9\td0\t1\n", r"test\.tsv:2: query 'q9' is judged but has no text"),
        (HEADER + "q1\td0\n", r"test\.tsv:2: 2 columns"),
        (HEADER + "q1\td0\t1\nq1\td0\t2\n", r"test\.tsv:3: document 'd0' has a second, other grade"),
        (HEADER, "has no judged queries"),
    ],
)
def test_judgements_that_cannot_be_read(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_beir(folder(tmp_path, qrels))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (
            '{"_id": "d0", "text": "a"}\n{"_id": "d0", "text": "b"}\n',
            r"corpus\.jsonl:2: the id 'd0' comes a second time",
        ),
        ('{"_id": "d0", "text": "a"}\n{"_id": "d1",', r"corpus\.jsonl:2: not JSON"),
        ('{"_id": "d0", "text": 3}\n', r"corpus\.jsonl:1: 'text' is not a string"),
        ('{"_id": "d0", "title": "a"}\n', r"corpus\.jsonl:1: there is no 'text'"),
        ('{"text": "a"}\n', r"corpus\.jsonl:1: there is no _id"),
        ('{"_id": true, "text": "a"}\n', r"corpus\.jsonl:1: there is no _id"),
        ('{"_id": "d1", "text": ' + "[" * 200_000 + "\n", r"corpus\.jsonl:1: not JSON"),
        ('{"_id": ' + "9" * 5000 + ', "text": "x"}\n', r"corpus\.jsonl:1: not JSON"),
        ("[1]\n", r"corpus\.jsonl:1: not a JSON object"),
    ],
)
def test_documents_that_cannot_be_read(tmp_path: Path, corpus: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_beir(folder(tmp_path, corpus=corpus))


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = folder(tmp_path)
    content = gzip.compress((path / "corpus.jsonl").read_bytes())
    (path / "corpus.jsonl").unlink()
    (path / "corpus.jsonl.gz").write_bytes(content[:-12])
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz:\d"):
        load_beir(path)


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    corpus = json.dumps({"_id": "d0", "text": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n"
    assert load_beir(folder(tmp_path, HEADER + "q1\td0\t1\n", corpus)).texts == ["a\u2028b\u0085c"]


def test_a_missing_split_lists_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="splits found: test"):
        load_beir(folder(tmp_path), split="dev")


def test_ids_with_spaces_match_as_they_stand(tmp_path: Path) -> None:
    corpus = '{"_id": " doc 2", "text": "a"}\n'
    collection = load_beir(folder(tmp_path, HEADER + "q1\t doc 2\t1\n", corpus))
    assert collection.qrels == {"q1": {" doc 2": 1}}
    assert collection.missing_docs == 0


def test_half_a_surrogate_pair_is_an_error(tmp_path: Path) -> None:
    collection = load_beir(folder(tmp_path, HEADER + "q1\td0\t1\n", '{"_id": "d0", "text": "\\ud800 sparse"}\n'))
    with pytest.raises(InputError, match="doc 'd0': holds half a surrogate pair"):
        _ = collection.content_hash


def archive_of(path: Path) -> Path:
    content = folder(path / "toy")
    with zipfile.ZipFile(path / "toy.zip", "w", zipfile.ZIP_DEFLATED) as members:
        for file in sorted(content.rglob("*.*")):
            members.write(file, Path("toy") / file.relative_to(content))
    return path / "toy.zip"


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["encrypted", "method 99"])
def test_an_archive_that_cannot_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, value: int
) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    archive = archive_of(tmp_path)
    content = bytearray(archive.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + place] = value
        at = content.find(b"PK\x01\x02", at + 4)
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"toy\.zip"):
        unpacked(archive)


def test_an_archive_larger_than_allowed_or_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    archive = archive_of(tmp_path)
    for name, value in (("LARGEST", 100), ("MOST", 2)):
        with monkeypatch.context() as changed, pytest.raises(InputError, match="unpacks to"):
            changed.setattr(loaders, name, value)
            unpacked(archive)
    with monkeypatch.context() as changed, pytest.raises(StorageError, match="has room for 5"):
        changed.setattr("shutil.disk_usage", lambda place: Room(100, 95, 5))
        unpacked(archive)
    assert load_beir(unpacked(archive)).missing_docs == 0


class Room(NamedTuple):
    total: int
    used: int
    free: int


def test_numbers_as_ids_match_those_of_the_judgements(tmp_path: Path) -> None:
    collection = load_beir(folder(tmp_path, "q1\t7\t1\n", '{"_id": 7, "text": "a"}\n'))
    assert collection.missing_docs == 0


def hub_folder(path: Path) -> Path:
    """A data set with BEIR's configurations, as `datasets` reads it from a folder or the hub."""
    path.mkdir()
    rows = {
        "corpus": CORPUS,
        "queries": QUERIES,
        "qrels": [
            {"query-id": q, "corpus-id": d, "score": g}
            for q, d, g in (("q1", "d0", 1), ("q1", "d1", 2), ("q2", "d2", 1))
        ],
    }
    for name, content in rows.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: default\n  data_files:\n  - split: test\n    path: qrels.jsonl\n"
        "- config_name: corpus\n  data_files:\n  - split: corpus\n    path: corpus.jsonl\n"
        "- config_name: queries\n  data_files:\n  - split: queries\n    path: queries.jsonl\n---\n"
    )
    return path


def test_a_hub_data_set_gives_the_same_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    repository = hub_folder(tmp_path / "toy")
    collection = load_hub(str(repository))
    assert isinstance(collection, Collection)
    assert collection.content_hash == load_beir(folder(tmp_path / "beir")).content_hash
    with pytest.raises(MissingError, match="dev"):
        load_hub(str(repository), split="dev")
