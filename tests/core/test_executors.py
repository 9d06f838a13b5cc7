"""Executors: the same cells and bytes under each, what is handed to workers, and how processor and GPUs are shared out."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import faults
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench import executors, journal, suite_run
from sparsebench.errors import InputError, MissingError
from sparsebench.executors import Group, Workers, groups, kind_of, predicted
from sparsebench.plan import plan
from sparsebench.planned_cell import PlannedCell
from sparsebench.process_workers import ProcessWorker, gpu_groups, thread_limits
from sparsebench.ray_workers import _several
from sparsebench.records import CellSpec, MemberSpec, Placement, SystemSpec, TaskSpec
from sparsebench.schedule import SHARE, Schedule
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.suite_source import load_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, reference: str) -> Path:
    return faults.write_suite(tmp_path_factory.mktemp("suite"), reference)


@pytest.fixture(scope="module")
def inline(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inline")
    run_suite(str(suite), out)
    return out


def test_processes_and_shards_store_what_one_process_stores(suite, inline, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums of floats depend on it; Ray's actors are in test_ray
    expected = faults.essence(inline)
    run_suite(str(suite), tmp_path / "process", executor="process", workers=2)
    assert faults.essence(tmp_path / "process") == expected
    for index in (1, 2, 3):
        run_suite(str(suite), tmp_path / "shards", shard=f"{index}/3")
    assert faults.essence(tmp_path / "shards") == expected


def test_a_chosen_cell_is_computed_again_with_its_baseline_and_nothing_else(suite, inline, tmp_path):
    expected = faults.essence(inline)
    cell = next(c for c in Store.open(inline) if c.record.placement.label == "magnitude 20%")
    baseline = cell.record.placement.baseline
    outcome = run_suite(str(suite), tmp_path / "again", only=[cell.id])
    assert outcome.done == 2
    assert faults.essence(tmp_path / "again") == {i: expected[i] for i in (cell.id, baseline)}
    with pytest.raises(InputError, match="has no cell 0123456789abcdef here"):
        run_suite(str(suite), tmp_path / "none", only=["0123456789abcdef"])
    with pytest.raises(InputError, match="one of the two"):
        run_suite(str(suite), tmp_path / "none", only=[cell.id], shard="1/2")
    assert not (tmp_path / "none").exists()


def test_what_was_found_whole_is_read_again_only_when_it_changed(suite, inline, monkeypatch):
    store = Store(inline)
    cells = [cell.id for cell in plan(load_suite(str(suite))).cells]
    read = Counter()
    real = Store.finished

    def finished(self, identity):
        read[identity] += 1
        return real(self, identity)

    monkeypatch.setattr(Store, "finished", finished)
    assert store.finished_among(cells) == set(cells)
    assert not read
    path = inline / "cells" / cells[3] / "samples.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")  # as long as before
    assert store.finished_among(cells) == set(cells) - {cells[3]}
    path.write_bytes(content)
    assert store.finished_among(cells) == set(cells)
    assert read == {cells[3]: 2}
    notes = inline / "cells" / journal.FILE
    notes.write_bytes(notes.read_bytes()[:-20] + b"\xff\n\n x")
    assert store.finished_among(cells) == set(cells)
    notes.unlink()
    assert store.finished_among([*cells, "0" * 16]) == set(cells)


def cell(number: int, stack: int, system: int, flops: float) -> PlannedCell:
    spec = CellSpec(
        system=SystemSpec(kind="causal-lm", ref=f"path:{system}", fingerprint="f", dtype="float32"),
        stack=[MemberSpec(method="random-weights", version=1, knobs={}, budget={"sparsity": stack / 10})],
        task=TaskSpec(id=f"task-{number}", version=1, definition="d", data="d"),
    )
    place = Placement(suite="s", suite_version=1, grid="g", family="pruning", baseline=None, label="l")
    return PlannedCell(id=f"{number:016x}", spec=spec, placement=place, task="t", flops=flops)


works = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.floats(0, 1e18)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(works, st.integers(1, 50))
def test_every_cell_is_handed_out_once_and_no_part_is_larger_than_it_must_be(work, workers):
    cells = [cell(i, *each) for i, each in enumerate(work)]
    schedule: Schedule[Group] = Schedule(groups(cells), workers)
    left, taken, last = sum(map(predicted, cells)), [], None
    while (last := schedule.take(last)) is not None:
        assert len({(c.spec.system.ref, str(c.spec.stack)) for c in last.cells}) == 1
        own = sum(map(predicted, last.cells))
        assert workers == 1 or len(last.cells) == 1 or own <= SHARE * left / workers * (1 + 1e-6)
        left -= own
        taken += [c.id for c in last.cells]
    assert Counter(taken) == Counter(c.id for c in cells)
    assert len(schedule) == 0


def test_a_stack_on_many_tasks_is_divided_between_workers():
    cells = [cell(i, 5, 0, 1e9) for i in range(24)]

    def sizes(workers, known=24):
        schedule, found, last = Schedule(groups(cells), workers), [], None
        for c in cells[:known]:
            schedule.pace.learn(kind_of(c), predicted(c), 1.0)
        while (last := schedule.take(last)) is not None:
            found.append(len(last.cells))
        return found

    assert sizes(1) == [24]
    assert sizes(4) == [3, 2, 2, 2, *[1] * 15]
    assert sizes(4, known=0) == [1] * 24
    assert sizes(4, known=2) == [2, *[1] * 22]


def test_what_takes_long_is_learnt_and_then_goes_first():
    quick, slow = [cell(i, i % 4, 0, 9e9) for i in range(0, 8, 2)], [cell(i, i % 4, 0, 3e9) for i in range(1, 8, 2)]
    quick, slow = (
        [
            c.model_copy(
                update={"spec": c.spec.model_copy(update={"task": c.spec.task.model_copy(update={"id": name})})}
            )
            for c in of
        ]
        for of, name in ((quick, "prefill"), (slow, "decode"))
    )
    unknown: Schedule[Group] = Schedule(groups([*quick, *slow]), 8)
    assert unknown.take(None).cells[0].spec.task.id == "prefill"
    known: Schedule[Group] = Schedule(groups([*quick, *slow]), 8)
    known.pace.learn(("prefill", "random-weights"), 1.0, 1.0)
    known.pace.learn(("decode", "magnitude"), 1.0, 20.0)  # another method: its task says enough
    assert known.take(None).cells[0].spec.task.id == "decode"
    assert known.pace.seconds({("decode", "wanda"): 2.0}) == 40.0
    assert known.pace.seconds({("choice", "wanda"): 2.0}) == 21.0  # as all that is done


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_what_others_are_compared_with_is_begun_first(workers):
    cells = [cell(i, 5, 0, 9.0) for i in range(8)] + [cell(i + 8, 0, 0, 1.0) for i in range(8)]
    of = {c.id: cells[i + 8].id for i, c in enumerate(cells[:8])}
    cells = [
        c.model_copy(update={"placement": c.placement.model_copy(update={"baseline": of.get(c.id)})}) for c in cells
    ]
    schedule: Schedule[Group] = Schedule(groups(cells), workers)
    begun = []
    while (group := schedule.take(None)) is not None:
        begun += [c.id for c in group.cells]
    assert set(begun[:8]) == set(of.values())


def test_what_one_worker_has_prepared_is_left_to_it_unless_that_takes_too_long():
    """Cells 0 to 7 are of one stack, 8 and 9 of another; each is known to take a second."""
    cells = [cell(i, 5 + i // 8, 0, 1e9) for i in range(10)]

    def begin(preparing):
        schedule: Schedule[Group] = Schedule(groups(cells), 3)
        for c in cells:
            schedule.pace.learn(kind_of(c), predicted(c), 1.0)
            if preparing is not None:
                schedule.pace.learn_preparing(groups([c])[0], preparing)
        return schedule

    for preparing in (None, 20.0):
        schedule = begin(preparing)
        first, second = schedule.take(None), schedule.take(None)
        assert (first.stack, second.stack) == (groups(cells[:1])[0].stack, groups(cells[8:9])[0].stack)
        assert schedule.take(first).stack == first.stack
        third = schedule.take(None)
        # Nobody knows what preparing takes: it is tried. Or it is known to take longer than what is left.
        assert (third is None) == (preparing == 20.0)
    schedule = begin(0.5)
    assert schedule.take(None).stack == schedule.take(None).stack == groups(cells[:1])[0].stack
    # Nothing that is left waiting is lost.
    schedule, last, count = begin(20.0), None, 0
    while (last := schedule.take(last)) is not None:
        count += len(last.cells)
    assert count == len(cells)


@pytest.mark.parametrize("workers", [1, 2, 7, 1000])
def test_workers_together_use_no_more_threads_than_there_are_cores(workers, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    assert thread_limits(workers) == {"OMP_NUM_THREADS": str(max(1, cores // workers)), "RAYON_NUM_THREADS": "1"}


def test_workers_take_turns_over_the_gpus_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert gpu_groups("cuda") == ["2", "5", "7"]
    assert gpu_groups("cuda:1") == ["5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7,1,0")
    assert gpu_groups("cuda", 2) == ["2,5", "7,1"]
    assert gpu_groups("cuda:1", 3) == ["5,7,1"]


@pytest.mark.parametrize(("device", "devices", "seen"), [
    ("cuda", 1, ["0", "1", "2", "3", "4"]), ("cuda", 2, ["0,1", "2,3"]), ("cuda:3", 2, ["3,4"]), ("cpu", 2, [""] * 9)
])  # fmt: skip
def test_no_two_workers_share_gpus_that_a_model_is_spread_over(monkeypatch, tmp_path, device, devices, seen):
    started: list[str] = []

    class Worker(ProcessWorker):
        def __init__(self, index, *args):
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", lambda *args, env, **options: started.append(env))
                super().__init__(index, *args)

        def begin(self, results):
            pass

    def pool(cells, store, device, executor, start, workers, on_done, stop):
        for index in range(workers.count):
            start(index, workers.count)

    monkeypatch.setattr(executors, "ProcessWorker", Worker)
    monkeypatch.setattr(executors, "pool", pool)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cells = [cell(0, 5, 0, 1e9).model_copy(update={"devices": devices})]
    executors.process(cells, Store(tmp_path), device, None, Workers(9), print, executors.Stop())
    found = [variables.get("CUDA_VISIBLE_DEVICES", "") for variables in started]
    assert list(dict.fromkeys(found)) == list(dict.fromkeys(seen))
    assert len(found) == (9 if devices == 1 or device == "cpu" else len(seen))


def test_cells_on_one_gpu_and_on_two_do_not_share_a_worker_s_model():
    cells = [cell(i, 5, 0, 1e9).model_copy(update={"devices": 1 + i % 2}) for i in range(4)]
    assert [[c.devices for c in group.cells] for group in groups(cells)] == [[1, 1], [2, 2]]
    assert len({group.system for group in groups(cells)}) == 2


@pytest.fixture
def wide(suite: Path, tmp_path: Path) -> Path:
    """The suite, its language model over two GPUs."""
    data = yaml.safe_load(suite.read_text())
    data["systems"]["stories"]["devices"] = 2
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_fewer_gpus_than_a_model_is_spread_over_are_said_before_anything_runs(wide, tmp_path, monkeypatch, executor):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(suite_run, "chosen_device", lambda device: "cuda")
    with pytest.raises(InputError, match="spread over 2 GPUs, and there are 1"):
        run_suite(str(wide), tmp_path / "none", executor=executor)
    assert not list(Store(tmp_path / "none").ids())


def test_a_suite_for_several_gpus_runs_on_a_processor_too(wide, inline, tmp_path):
    assert {(c.spec.system.kind, c.devices) for c in plan(load_suite(str(wide))).cells} == {
        ("causal-lm", 2),
        ("lexical", 1),
    }
    run_suite(str(wide), tmp_path / "out")
    assert faults.essence(tmp_path / "out") == faults.essence(inline)


def test_there_are_as_many_actors_as_find_their_gpus_on_one_machine():
    def ray(*machines):
        nodes = [{"Alive": alive, "Resources": {"CPU": 4.0, **({"GPU": n} if n else {})}} for alive, n in machines]
        return SimpleNamespace(nodes=lambda: nodes)

    assert _several(ray((True, 2.0), (True, 4.0)), Workers(3), 4).count == 1
    assert _several(ray((True, 4.0), (True, 5.0), (False, 8.0)), Workers(9), 2).count == 4
    assert _several(ray((True, 8.0)), Workers(3, gpus=2), 2).count == 3
    for machines in (((True, 2.0), (True, 1.0)), ((True, 2.0), (False, 8.0)), ((True, 0.0),)):
        with pytest.raises(MissingError, match="spread over 3 GPUs, and no machine of the Ray cluster has more than"):
            _several(ray(*machines), Workers(3), 3)
    with pytest.raises(InputError, match=r"an actor has 2 GPUs where .* not 0\.5") as caught:
        _several(ray((True, 4.0)), Workers(3, gpus=0.5), 2)
    assert "--gpus" in caught.value.hint
