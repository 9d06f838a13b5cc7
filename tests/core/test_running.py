"""Running suites: executors, failures, interrupts, memory, resuming."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
import yaml
from models import data_folder

from sparsebench import adapters, executors, runner, suite_run
from sparsebench.adapters.base import Adapter
from sparsebench.errors import InputError, IntegrityError, UnknownNameError
from sparsebench.plan import plan
from sparsebench.runner import Session, plain, run_cells
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.suite_source import load_suite
from sparsebench.tasks.perplexity import BoundPerplexityTask

CELLS = 19


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def stored(folder):
    return {cell.id: cell for cell in Store.open(folder)}


def statuses(folder):
    return Counter(cell.record.outcome.status for cell in Store.open(folder))


def contents(folder):
    """Bytes of the specification and the samples of each cell; times and memory are elsewhere."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.glob("cells/*/*"))
        if path.name in ("spec.json", "samples.parquet")
    }


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def perplexities(folder, label):
    cells = [c for c in Store.open(folder) if (c.spec.task.id, c.record.placement.label) == ("tiny-perplexity", label)]
    return [cell.record.outcome.metrics[0].value for cell in cells]


def test_both_executors_store_the_same_bytes_and_finished_cells_are_not_computed_again(
    small, out, tmp_path, monkeypatch
):
    cores = len(os.sched_getaffinity(0))
    with threads(max(1, cores // 2)):  # as many as each worker has: sums of floats depend on it
        outcome = run_suite(str(small.path), out)
    assert (outcome.done, outcome.failed, outcome.skipped, outcome.left) == (CELLS, 0, 0, 0)
    apart = tmp_path / "apart"
    assert run_suite(str(small.path), apart, executor="process", workers=2).done == CELLS
    assert contents(apart) == contents(out)
    for cell in Store.open(out):
        assert cell.environment.executor == "inline"
        for value in cell.record.outcome.metrics:
            assert value.metric.value(cell.samples()) == value.value
    here, there = next(iter(stored(out).values())).environment, next(iter(stored(apart).values())).environment
    assert (there.executor, there.command) == ("process", here.command)

    monkeypatch.setattr(runner, "load_system", None)  # nothing is loaded where nothing is left to do
    again = run_suite(str(small.path), out)
    assert (again.done, again.skipped) == (0, CELLS)


def test_the_small_suite_says_what_it_should(small, out):
    data_folder("stories260k")
    run_suite(str(small.path), out)
    (dense,), (noise,) = perplexities(out, "dense"), perplexities(out, "dense (A/A batch 64)")
    assert dense == pytest.approx(noise, rel=1e-5)
    assert dense < min(perplexities(out, "magnitude 20%")) < min(perplexities(out, "magnitude 2:4"))
    first, second = perplexities(out, "random-weights 50%")
    assert first != second
    for cell in Store.open(out):
        outcome = cell.record.outcome
        if cell.spec.stack and cell.spec.system.kind == "causal-lm":
            assert outcome.sparsity == pytest.approx(0.2 if "20" in cell.record.placement.label else 0.5, abs=0.005)
            assert outcome.flops < outcome.flops_dense
            assert outcome.phase == "prefill+decode"
        if cell.spec.system.kind == "causal-lm":
            assert cell.record.system["engine"] == "packed rows"
            assert cell.record.system["base_precision"] == "float32"
    shown = {
        (c.record.data[0].publish_text, name in c.samples()) for c in Store.open(out) for name in ("response", "target")
    }
    assert shown == {(True, True), (False, False)}  # texts only where the licence permits


def test_a_method_that_fails_is_recorded_and_the_others_go_on(small, out, monkeypatch):
    magnitude = adapters.get("magnitude")

    def broken(self, layer):
        raise ZeroDivisionError("no scores today")

    monkeypatch.setattr(magnitude, "score", broken)
    outcome = run_suite(str(small.path), out)
    assert (outcome.done, outcome.failed, outcome.left) == (CELLS, 6, 0)
    for cell in Store.open(out):
        failed = cell.record.placement.label.startswith("magnitude")
        assert cell.record.outcome.status == ("failed" if failed else "ok")
        said = cell.record.outcome.error
        assert said is None or said.startswith("ZeroDivisionError: no scores today (core/test_running.py, line ")
        assert failed == (said is not None)
        assert (cell.samples() is None) == failed
    before = contents(out)
    monkeypatch.undo()
    again = run_suite(str(small.path), out)
    assert (again.done, again.skipped, again.failed) == (6, CELLS - 6, 0)
    assert before.items() <= contents(out).items()
    assert statuses(out) == {"ok": CELLS}


def test_a_task_that_fails_takes_down_its_own_cells_only(small, out, monkeypatch):
    def broken(self, system):
        raise InputError("the text is gone", "put it back")

    monkeypatch.setattr(BoundPerplexityTask, "evaluate", broken)
    assert run_suite(str(small.path), out).failed == 6
    failed = {c.spec.task.id for c in Store.open(out) if c.record.outcome.status == "failed"}
    assert failed == {"tiny-perplexity"}


def test_a_model_that_cannot_be_put_back_is_not_used_any_further(small, out, monkeypatch):
    magnitude = adapters.get("magnitude")
    whole = magnitude.attach
    loads = []
    real = runner.load_system

    @contextmanager
    def stuck(self, system, prepared, budget):
        with whole(self, system, prepared, budget) as sparse:
            yield sparse
        raise RuntimeError("cannot detach")

    monkeypatch.setattr(magnitude, "attach", stuck)
    monkeypatch.setattr(runner, "load_system", lambda *args: loads.append(args) or real(*args))
    outcome = run_suite(str(small.path), out)
    assert (outcome.failed, outcome.left) == (0, 0)
    # Two groups could not be put back; after each the model, or the next one, is loaded anew.
    assert [kind for kind, *_ in loads] == ["causal-lm", "causal-lm", "causal-lm", "lexical"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_when_memory_runs_out_the_batch_is_halved_and_that_is_recorded(small, out, monkeypatch, error):
    real = BoundPerplexityTask.evaluate
    seen = []

    def hungry(self, system):
        seen.append(system.batch_tokens)
        if system.batch_tokens > 300:
            raise error
        return real(self, system)

    monkeypatch.setattr(BoundPerplexityTask, "evaluate", hungry)
    systems = {**small.data["systems"], "stories": {**small.data["systems"]["stories"], "batch_tokens": 1024}}
    grids = [{**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": ["dense"]}]
    run_suite(str(small.write(systems=systems, grids=grids)), out)
    ((cell),) = stored(out).values()
    assert seen == [1024, 512, 256]
    assert (cell.environment.batch_replans, cell.environment.batch_tokens) == (2, 256)
    assert cell.record.outcome.status == "ok"
    assert cell.record.outcome.counters["prefill.tokens"] == 5 * 47  # of the last attempt only


def test_cells_that_follow_in_a_halved_batch_say_so_and_the_next_group_begins_anew(small, out, monkeypatch):
    real, lanes = BoundPerplexityTask.evaluate, []

    def hungry(self, system):
        lanes.append(system.max_lanes)
        if system.batch_tokens > 300:
            raise MemoryError
        return real(self, system)

    monkeypatch.setattr(BoundPerplexityTask, "evaluate", hungry)
    systems = {**small.data["systems"], "stories": {**small.data["systems"]["stories"], "batch_tokens": 1024}}
    tasks = [small.task("tiny-perplexity"), small.task("tiny-choice")]
    methods = ["dense", {"method": "magnitude", "budgets": {"sparsity": 0.3}}]
    grids = [{**small.data["grids"][0], "tasks": tasks, "methods": methods}]
    run_suite(str(small.write(systems=systems, grids=grids)), out)
    cells = stored(out).values()
    assert all(c.environment.batch_tokens == 1024 >> c.environment.batch_replans for c in cells)
    assert Counter(c.environment.batch_replans for c in cells if c.spec.task.id == "tiny-perplexity") == {2: 2}
    assert lanes == [128, 64, 32] * 2


def test_when_memory_never_suffices_the_cell_has_failed_and_may_be_tried_again(small, out, monkeypatch):
    def hungry(self, system):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(BoundPerplexityTask, "evaluate", hungry)
    grids = [{**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": ["dense"]}]
    assert run_suite(str(small.write(grids=grids)), out).failed == 1
    ((cell),) = stored(out).values()
    assert cell.record.outcome.retryable


def test_facts_that_json_lacks_do_not_cost_the_cell(small, out, monkeypatch):
    real = BoundPerplexityTask.evaluate

    def odd(self, system):
        result = real(self, system)
        result.facts["odd"] = {"nan": float("nan"), "array": torch.ones(2), "scalar": torch.tensor(3), 4: {1}}
        return result

    monkeypatch.setattr(BoundPerplexityTask, "evaluate", odd)
    grids = [{**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": ["dense"]}]
    assert run_suite(str(small.write(grids=grids)), out).failed == 0
    ((cell),) = stored(out).values()
    assert cell.record.outcome.facts["odd"] == {"nan": None, "array": [1.0, 1.0], "scalar": 3, "4": [1]}
    assert plain(pd.NA) == str(pd.NA)


def test_each_calibration_text_prepares_anew(small, out):
    texts = {f"text-{seed}": {"data": "prose", "sequences": 2, "length": 32, "seed": seed} for seed in (0, 1)}
    row = {"method": "wanda", "budgets": {"sparsity": 0.5}, "knobs": {"stats_pass": "dense"}}
    grid = {**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": [row]}
    grids = [{**grid, "name": name, "calibration": name} for name in texts]
    run_suite(str(small.write(grids=grids, calibration=texts)), out)
    first, second = perplexities(out, "wanda 50%")
    assert first != second
    apart = out.parent / "apart"
    run_suite(str(small.write(grids=grids[1:], calibration=texts)), apart)
    (alone,) = perplexities(apart, "wanda 50%")
    assert alone in (first, second)


def test_states_of_a_method_serve_all_of_its_budgets_and_are_dropped_afterwards(small, out, monkeypatch):
    texts = {"text": {"data": "prose", "sequences": 2, "length": 32}}
    rows = [
        {"method": "wanda", "budgets": {"sparsity": [0.2, 0.5]}, "knobs": {"stats_pass": "dense"}},
        {"method": "magnitude", "budgets": {"sparsity": 0.5}},
    ]
    grids = [
        {**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": rows, "calibration": "text"}
    ]
    prepared = []
    real = Adapter.prepare
    wanda = adapters.get("wanda")
    monkeypatch.setattr(wanda, "prepare", lambda self, *a, real=wanda.prepare: prepared.append(self) or real(self, *a))
    made = plan(load_suite(str(small.write(grids=grids, calibration=texts))))
    session = Session()
    run_cells(made.cells, Store.create(out), session)
    assert len(prepared) == 1
    assert real is Adapter.prepare
    assert len(session.prepared) == 1  # wanda's, the last in order
    assert statuses(out) == {"ok": 4}


def test_what_changed_between_plan_and_run_is_not_run(small, out):
    made = plan(load_suite(str(small.path)))
    path = small.folder / "text.txt"
    path.write_text(path.read_text()[::-1])
    run_cells([c for c in made.cells if not c.spec.stack and c.batch_tokens is None], Store.create(out), Session())
    errors = {c.spec.task.id: c.record.outcome.error for c in Store.open(out)}
    assert errors.pop("tiny-perplexity").startswith("IntegrityError: task tiny-perplexity is not what was planned")
    assert set(errors.values()) == {None}
    cell = made.cells[0].model_copy(deep=True)
    cell.spec.system = cell.spec.system.model_copy(update={"fingerprint": "another"})
    with pytest.raises(IntegrityError, match="not what was planned"):
        Session().load(cell)


class Interrupting:
    """In the place of the tally: interrupts once so many cells are done."""

    def __init__(self, monkeypatch, after, times=1):
        self.said = []
        real = suite_run._Tally.on_done

        def on_done(tally, done):
            real(tally, done)
            self.said.append(done.id)
            if len(self.said) == after:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(suite_run._Tally, "on_done", on_done)


def test_an_interrupt_lets_the_cell_in_flight_finish_and_the_next_run_goes_on(small, out, monkeypatch, capfd):
    handler = signal.getsignal(signal.SIGINT)
    Interrupting(monkeypatch, after=3)
    outcome = run_suite(str(small.path), out)
    assert (outcome.done, outcome.left, outcome.interrupted) == (3, CELLS - 3, True)
    assert statuses(out) == {"ok": 3}
    assert "stopping after the cell in flight" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    again = run_suite(str(small.path), out)
    assert (again.done, again.skipped, again.interrupted) == (CELLS - 3, 3, False)


def test_a_second_interrupt_stops_at_once(small, out, monkeypatch):
    Interrupting(monkeypatch, after=2, times=2)
    with pytest.raises(KeyboardInterrupt):
        run_suite(str(small.path), out)
    assert statuses(out) == {"ok": 2}


@pytest.fixture
def workers(monkeypatch):
    """The worker processes that were started, in order."""
    started = []
    real = executors.ProcessWorker.__init__

    def noted(self, *args):
        real(self, *args)
        started.append(self)

    monkeypatch.setattr(executors.ProcessWorker, "__init__", noted)
    yield started
    assert all(worker.code is not None for worker in started)  # none is left behind


def small_grid(small):
    return small.write(grids=[{**small.data["grids"][0], "methods": ["dense"]}])


def test_workers_that_are_killed_lose_no_cell_and_double_none(small, out, monkeypatch, workers):
    said = Counter()
    real = suite_run._Tally.on_done

    def on_done(tally, done):
        real(tally, done)
        said[done.id] += 1
        if len(said) == 1:
            os.kill(workers[0].process.pid, signal.SIGKILL)

    monkeypatch.setattr(suite_run._Tally, "on_done", on_done)
    outcome = run_suite(str(small_grid(small)), out, executor="process", workers=1)
    assert (outcome.done, outcome.failed, outcome.left) == (3, 0, 0)
    assert len(workers) == 2
    assert set(said.values()) == {1}
    assert statuses(out) == {"ok": 3}
    assert {path.name for path in (out / "cells").iterdir() if path.name.startswith(".")} == {".leases", ".whole"}


def test_a_cell_on_which_two_workers_died_has_failed(small, out, monkeypatch, workers):
    noted = executors.ProcessWorker.__init__

    def doomed(self, *args):
        noted(self, *args)
        if len(workers) <= 2:
            self.kill()

    monkeypatch.setattr(executors.ProcessWorker, "__init__", doomed)
    outcome = run_suite(str(small_grid(small)), out, executor="process", workers=1)
    assert (outcome.done, outcome.failed, outcome.left) == (3, 1, 0)
    (failed,) = (c for c in Store.open(out) if c.record.outcome.status == "failed")
    assert (
        failed.record.outcome.error
        == "ChildProcessError: two worker processes died on this cell, the last with code -9"
    )


def test_an_interrupt_reaches_workers_after_the_cell_in_flight(small, out, monkeypatch, workers):
    slow = yaml.safe_load((small.folder / "tiny-answers.yaml").read_text())
    slow["generation"] = {"until": [], "max_gen_toks": 400, "ignore_eos": True}
    for name in ("slow", "slower"):
        (small.folder / f"{name}.yaml").write_text(yaml.safe_dump({**slow, "task": name}))
    tasks = [small.task("tiny-choice"), small.task("slow"), small.task("slower")]
    Interrupting(monkeypatch, after=1)
    grids = [{**small.data["grids"][0], "methods": ["dense"], "tasks": tasks}]
    outcome = run_suite(str(small.write(grids=grids)), out, executor="process", workers=1)
    assert outcome.interrupted
    assert outcome.done in (1, 2)  # with or without the cell that was begun meanwhile; never the third
    assert outcome.left == 3 - outcome.done
    assert set(statuses(out)) == {"ok"}


def test_options(small, out):
    with pytest.raises(UnknownNameError, match="executor"):
        run_suite(str(small.path), out, executor="proces")
    for shard in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "²/3", "1/" + "9" * 5000):
        with pytest.raises(InputError, match="must be I/N"):
            run_suite(str(small.path), out, shard=shard)
    with pytest.raises(InputError, match="no device 'cuda:77'"):
        run_suite(str(small.path), out, device="cuda:77")
    assert not out.exists()


def test_shards_together_are_the_whole(small, out, tmp_path):
    done = [run_suite(str(small.path), out, shard=f"{i}/2").done for i in (1, 2)]
    assert sum(done) == CELLS
    assert statuses(out) == {"ok": CELLS}


def test_a_folder_that_is_moved_away_during_a_run_is_noticed(small, out, tmp_path, monkeypatch):
    write, written = Store.write, []

    def moving(self, spec, *others):
        written.append(write(self, spec, *others))
        if len(written) == 3:
            out.rename(tmp_path / "elsewhere")
        return written[-1]

    monkeypatch.setattr(Store, "write", moving)
    outcome = run_suite(str(small.path), out)
    assert (outcome.done, outcome.lost) == (CELLS, 3)
    assert Store.open(out).suite()["suite"]["suite"] == small.data["suite"]
    assert len(Store.open(out).ids()) == CELLS - 3
    monkeypatch.undo()
    again = run_suite(str(small.path), out)
    assert (again.done, again.lost) == (3, 0)
