from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from sparsebench import journal
from sparsebench import store as store_module
from sparsebench.errors import InputError, IntegrityError
from sparsebench.identity import cell_id
from sparsebench.metrics import Metric
from sparsebench.plain_files import content_of
from sparsebench.records import (
    CellRecord,
    CellSpec,
    Environment,
    MetricValue,
    NewerSchemaError,
    Outcome,
    Placement,
    SystemSpec,
    TaskSpec,
)
from sparsebench.store import Store

SAMPLES = pd.DataFrame({"sample": ["a", "b"], "cluster": ["a", "b"], "correct": [1.0, 0.0]})


def spec(**changes):
    return CellSpec(
        system=SystemSpec(kind="lexical", ref="lexical"),
        stack=[],
        task=TaskSpec(id="t", version=1, definition="d", data="h"),
        **changes,
    )


def record(cell, status="ok", **outcome):
    metric = MetricValue(metric=Metric(name="accuracy", column="correct"), value=0.5, n=2)
    return CellRecord(
        cell=cell_id(cell.plain()),
        placement=Placement(suite="s", suite_version=1, grid="g", family="dense", baseline=None, label="dense"),
        outcome=Outcome(status=status, metrics=[metric] if status == "ok" else [], **outcome),
    )


def write(store, cell, status="ok", **outcome):
    samples = SAMPLES if status == "ok" else None
    return store.write(cell, record(cell, status, **outcome), Environment(hardware="here"), samples)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "results")


def files(store):
    return sorted(
        str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file() and p.name != journal.FILE
    )


def test_what_is_written_is_read(store):
    cell = spec(seed=3)
    identity = write(store, cell).id
    (found,) = store
    assert (found.id, found.spec, found.record.outcome.metrics[0].value) == (identity, cell, 0.5)
    pd.testing.assert_frame_equal(found.samples(), SAMPLES)
    assert store.finished(identity)
    assert files(store) == [
        f"cells/{identity}/{n}" for n in ("env.json", "record.json", "samples.parquet", "spec.json")
    ]


def test_equal_cells_are_equal_bytes(store, tmp_path):
    other = Store.create(tmp_path / "other")
    for each in (store, other):
        write(each, spec())
    for name in files(store):
        assert (store.root / name).read_bytes() == (other.root / name).read_bytes()


def test_only_the_record_of_its_own_specification_is_stored(store):
    with pytest.raises(IntegrityError, match="with the specification of"):
        store.write(spec(seed=1), record(spec(seed=2)), Environment(hardware="here"), SAMPLES)
    assert files(store) == []


@pytest.mark.parametrize("at", ["samples.parquet", "spec.json", "env.json", "record.json", "move"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_that_dies_while_it_stores_leaves_nothing_half_done(store, monkeypatch, at, earlier):
    cell = spec()
    if earlier:
        write(store, cell, "failed", error="an earlier attempt")
    before = files(store)

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    if at == "samples.parquet":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", die)
    elif at == "move":
        monkeypatch.setattr(store_module, "_move_into_place", die)
    else:
        real = store_module.write_json
        monkeypatch.setattr(
            store_module, "write_json", lambda path, data: die() if path.name == at else real(path, data)
        )
    with pytest.raises(Killed):
        write(store, cell)
    assert files(store) == before
    assert not store.finished(cell_id(cell.plain()))
    monkeypatch.undo()
    write(store, cell)
    assert store.finished(cell_id(cell.plain()))


def test_an_earlier_attempt_comes_back_when_the_new_one_cannot_be_moved(store, monkeypatch):
    cell = spec()
    write(store, cell, "failed", error="first")
    real = os.replace
    moves = []

    def second_fails(source, target, **options):
        moves.append(source)
        if len(moves) == 3:  # onto the place (refused, it is taken), the old one away, then the new one
            raise OSError(28, "No space left on device")
        return real(source, target, **options)

    monkeypatch.setattr(os, "replace", second_fails)
    aside = store.cells_folder / "aside"
    shutil.copytree(store.cells_folder / cell_id(cell.plain()), aside)
    with pytest.raises(OSError, match="space"):
        store_module._move_into_place(aside, store.cells_folder / cell_id(cell.plain()))
    assert store.read(cell_id(cell.plain())).record.outcome.error == "first"


def test_folders_of_unfinished_cells_are_not_seen(store):
    identity = write(store, spec()).id
    shutil.copytree(store.cells_folder / identity, store.cells_folder / f".{identity}-abc")
    (store.cells_folder / "0123456789abcde").mkdir()
    (store.cells_folder / "notes.txt").write_text("mine")
    assert store.ids() == [identity]
    assert len(list(store)) == 1


def test_failed_cells_are_computed_again_and_finished_ones_are_not(store):
    failed = write(store, spec(seed=1), "failed", error="no memory").id
    done = write(store, spec(seed=2)).id
    assert (store.finished(failed), store.finished(done), store.finished("0" * 16)) == (False, True, False)
    assert store.read(failed).samples() is None
    write(store, spec(seed=1))
    assert store.finished(failed)


@pytest.mark.parametrize("name", ["spec.json", "record.json", "env.json", "samples.parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage", "folder"])
def test_damaged_files_are_named_and_computed_again(store, name, damage):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\xff\x00[[["}[damage])
    with pytest.raises(IntegrityError) as caught:
        store.read(identity).samples()
    assert str(path) in caught.value.message
    assert not store.finished(identity)
    if damage != "folder":
        write(store, spec())
        assert store.finished(identity)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("spec.json", {"seed": 7}, "describes cell"),
        ("spec.json", {"surprise": 1}, "describes cell"),
        ("spec.json", {"seed": float("nan")}, "NaN is no JSON"),
        ("record.json", {"cell": "f" * 16}, "is the record of cell"),
        ("record.json", {"schema_version": None}, "no schema_version"),
        ("record.json", {"schema_version": True}, "no schema_version"),
        ("record.json", {"samples_sha256": "0" * 64}, "recorded 000000000000"),
        ("record.json", {"samples_sha256": None}, "names no samples"),
        ("record.json", {"outcome": {}}, "outcome.status"),
        ("env.json", {"threads": "many"}, "threads"),
    ],
)
def test_edited_files_are_refused(store, name, edit, message):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(IntegrityError, match=message):
        store.read(identity).samples()
    assert not store.finished(identity)


@pytest.mark.parametrize(
    "fact", [0.1, 5e-324, 1.7976931348623157e308, -0.0, 10**30, "\U0001f600\u2028", None, [[], {}]]
)
def test_what_was_written_is_what_is_read(store, fact):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / "record.json"
    data = json.loads(path.read_text())
    data["placement"]["facts"]["odd"] = fact
    path.write_text(json.dumps(data))
    assert repr(store.read(identity).record.placement.facts["odd"]) == repr(fact)


@pytest.mark.parametrize("fact", ["[" * 400 + "]" * 400, '"\\ud800"'])
def test_what_the_fast_parser_refuses_is_read_by_the_other(store, fact):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / "record.json"
    data = json.loads(path.read_text())
    data["placement"]["facts"]["odd"] = "it"
    path.write_text(json.dumps(data).replace('"it"', fact))
    assert store.read(identity).record.placement.facts["odd"] == json.loads(fact)


def test_a_file_longer_than_one_read(store, tmp_path):
    content = random.Random(0).randbytes(200_000)
    (tmp_path / "long").write_bytes(content)
    assert content_of(tmp_path / "long") == content


def test_what_cells_have_in_common_is_one_object(store):
    one, other = (store.read(write(store, spec(seed=seed)).id) for seed in (1, 2))
    assert one.spec.task is other.spec.task
    assert one.spec.system is other.spec.system
    with pytest.raises(ValidationError, match="frozen"):
        one.spec.task.id = "another"


def test_cells_of_a_newer_version_are_neither_read_nor_replaced(store):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99, "new": 1}))
    for ask in (store.read, store.finished):
        with pytest.raises(NewerSchemaError, match="schema 99 is newer") as caught:
            ask(identity)
        assert caught.value.exit_code == 2


def test_a_folder_that_is_no_results_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="is no results folder"):
            Store.open(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write results"):
        Store.create(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write results"):
        Store.create(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot write results"):
            Store.create(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_that_is_full(store, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(InputError, match="No space left"):
        write(store, spec())
    monkeypatch.setattr(store_module, "write_json", full)
    with pytest.raises(InputError, match="No space left"):
        store.write_suite({})


def test_the_suite_and_its_lock(store):
    assert store.suite() == {}
    store.write_suite({"suite": {"suite": "s"}, "lock": {"a": 1}})
    assert store.suite()["lock"] == {"a": 1}
    (store.root / "suite.json").write_text('{"suite"')
    with pytest.raises(IntegrityError, match=r"suite\.json"):
        store.suite()


def test_a_suite_that_a_killed_run_left_half_written_is_swept_up(store):
    (store.root / ".suite.json-0123456789ab").write_text('{"suite"')
    store.write_suite({"suite": {"suite": "s"}})
    assert sorted(path.name for path in store.root.iterdir()) == ["cells", "suite.json"]


def test_two_runs_write_the_suite_in_turns(store):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.write_suite({"suite": {"suite": f"s{number}"}}), range(20)))
    assert store.suite()["suite"]["suite"].startswith("s")
    assert sorted(path.name for path in store.root.iterdir()) == ["cells", "suite.json"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors cannot be counted here")
def test_no_descriptor_stays_open_for_a_folder(tmp_path: Path) -> None:
    def written(name: str) -> int:
        Store.create(tmp_path / name).write_suite({"suite": {}, "lock": {}})
        return len(os.listdir("/proc/self/fd"))

    assert written("first") == written("second")


NAMES = ("spec.json", "record.json", "env.json", "samples.parquet")


@pytest.mark.parametrize("name", NAMES)
def test_links_pipes_and_devices_in_the_place_of_files_are_not_read(store, tmp_path, name):
    identity = write(store, spec()).id
    path = store.cells_folder / identity / name
    outside = path.replace(tmp_path / name)
    for make in (
        lambda: path.symlink_to(outside),
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
    ):
        make()
        with pytest.raises(IntegrityError):
            store.read(identity).samples()
        assert not store.finished(identity)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    outside.replace(path)
    assert store.finished(identity)


def test_a_cell_that_is_a_link_is_not_read_but_replaced(store, tmp_path):
    identity = write(store, spec()).id
    place = store.cells_folder / identity
    outside = place.rename(tmp_path / "outside")
    place.symlink_to(outside)
    with pytest.raises(IntegrityError, match="the folder is a link"):
        store.read(identity)
    before = {path.name: path.stat().st_mtime_ns for path in outside.iterdir()}
    assert write(store, spec()).folder == place
    assert not place.is_symlink()
    assert {path.name: path.stat().st_mtime_ns for path in outside.iterdir()} == before


@pytest.mark.parametrize("name", [".whole", ".leases"])
def test_nothing_is_written_through_a_link(store, tmp_path, name):
    identity = write(store, spec()).id
    outside = tmp_path / "outside"
    place = store.cells_folder / name
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    for opened in (Store.open, Store.create):
        with pytest.raises(IntegrityError, match="is a link"):
            opened(store.root)
    write(store, spec(seed=7))  # a folder that was opened before the link was made
    store.finished_among([identity])
    with store.leased([identity]) as mine:
        assert mine == {identity}
    assert not outside.exists()


def test_a_results_folder_may_itself_be_a_link(store, tmp_path):
    identity = write(store, spec()).id
    (tmp_path / "link").symlink_to(store.root)
    assert Store.open(tmp_path / "link").ids() == [identity]
    moved = (store.root / "cells").rename(tmp_path / "moved")
    (store.root / "cells").symlink_to(moved)
    with pytest.raises(IntegrityError, match="is a link"):
        Store.open(store.root)


def test_a_suite_or_a_record_without_end_is_given_up(store, tmp_path):
    (tmp_path / "long").write_bytes(bytes(1000))
    assert len(content_of(tmp_path / "long", 1000)) == 1000
    with pytest.raises(OSError, match="too large"):
        content_of(tmp_path / "long", 999)
    (store.root / "suite.json").symlink_to("/dev/zero")
    with pytest.raises(IntegrityError, match="is a link"):
        store.suite()
    (store.root / "suite.json").unlink()
    os.mkfifo(store.root / "suite.json")
    with pytest.raises(IntegrityError, match="no plain file"):
        store.suite()
