"""Results in an object store, with fsspec's own in memory in the place of one."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import fsspec
import pytest

from sparsebench.errors import InputError, IntegrityError, MissingError, StorageError
from sparsebench.remote import Remote, address
from sparsebench.reports.collect import collect
from sparsebench.store import Store
from sparsebench.suite_run import run_suite

PLACE = "memory://bucket/results"


@pytest.fixture
def search(small, tmp_path, monkeypatch):
    """A suite that needs no model, and an empty store and cache."""
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield str(small.write(grids=small.data["grids"][1:], systems={"lexical": {"kind": "lexical"}}))
    files.store.clear()


def names():
    return {path.removeprefix("/bucket/results/") for path in fsspec.filesystem("memory").find("/bucket")}


def test_a_run_sends_its_cells_and_another_machine_goes_on_and_reports(search, tmp_path):

    first = run_suite(search, Path(PLACE))  # a Path has lost a slash
    assert (first.done, first.failed) == (1, 0)
    (cell,) = Store.open(PLACE).ids()
    files = {f"cells/{cell}/{name}" for name in ("spec.json", "record.json", "env.json", "samples.parquet")}
    assert names() == {"suite.json", *files}
    shutil.rmtree(tmp_path / "cache")
    again = run_suite(search, Path(PLACE))
    assert (again.done, again.skipped) == (0, 1)
    shutil.rmtree(tmp_path / "cache")
    assert set(collect(PLACE)["cell"]) == {cell}
    assert not list(tmp_path.rglob(".staging-*"))


def test_a_cell_without_its_record_is_not_there_and_foreign_files_stay_where_they_are(search, tmp_path):

    run_suite(search, Path(PLACE))
    (cell,) = Store.open(PLACE).ids()
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/results/cells/../../evil", b"x")
    files.pipe("/bucket/results/notes.txt", b"x")
    files.rm(f"/bucket/results/cells/{cell}/record.json")
    shutil.rmtree(tmp_path / "cache")
    assert Store.open(PLACE).ids() == []
    fetched = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert fetched == {"suite.json", ".fetched.json"}
    assert run_suite(search, Path(PLACE)).done == 1
    assert f"cells/{cell}/record.json" in names()


def test_readers_see_what_the_store_holds_and_nothing_else(search):
    run_suite(search, Path(PLACE))
    (cell,) = Store.open(PLACE).ids()
    files = fsspec.filesystem("memory")
    path = f"/bucket/results/cells/{cell}/samples.parquet"
    content = files.cat(path)
    files.pipe(path, content[:-1] + bytes([content[-1] ^ 1]))  # as large as before
    with pytest.raises(IntegrityError):
        Store.open(PLACE).read(cell).samples()
    files.pipe(path, content)
    assert Store.open(PLACE).read(cell).samples() is not None
    files.rm(f"/bucket/results/cells/{cell}", recursive=True)
    assert Store.open(PLACE).ids() == []
    files.store.clear()
    with pytest.raises(InputError, match="is no results folder"):
        Store.open(PLACE)


def test_a_files_address_is_absolute(search, tmp_path):
    place = tmp_path / "some folder"
    assert address(Path(f"file://{place}")) == address(f"file://{place}") == f"file://{place}"
    run_suite(search, Path(f"file://{place}"))
    assert len(Store.open(place).ids()) == 1


def test_a_store_that_fails_is_an_error_in_words_and_nothing_is_lost(search, monkeypatch):

    memory = type(fsspec.filesystem("memory"))
    real = memory.put_file
    sent = []

    def put_file(self, here, there, **options):
        sent.append(there)
        if there.endswith("record.json"):
            raise OSError("SlowDown")
        real(self, here, there, **options)

    monkeypatch.setattr(memory, "put_file", put_file)
    with pytest.raises(StorageError, match="memory://bucket/results: SlowDown"):
        run_suite(search, Path(PLACE))
    assert sent[-1].endswith("record.json")
    monkeypatch.setattr(memory, "put_file", real)
    again = run_suite(search, Path(PLACE))
    assert (again.done, again.skipped) == (0, 1)  # it was computed, and is sent now
    assert any(name.endswith("record.json") for name in names())


def test_addresses():
    assert address("s3:/bucket/a/b") == address("s3://bucket/a/b") == "s3://bucket/a/b"
    for path in ("results/kick", "/tmp/x", "./s3", "C:/x", "a/s3://b"):
        assert address(path) is None
    with pytest.raises(InputError, match="Protocol not known"):
        Remote("nowhere://x")
    with pytest.raises(MissingError, match="s3fs"):
        if importlib.util.find_spec("s3fs"):
            pytest.skip("s3fs is installed")
        Remote("s3://bucket/x")
