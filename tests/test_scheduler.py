"""The simulation of the scheduler: every cell once, no time lost or invented, and workers that are kept busy."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from sparsebench.records import (
    CellRecord,
    CellSpec,
    Environment,
    MemberSpec,
    Outcome,
    Placement,
    SystemSpec,
    TaskSpec,
)
from sparsebench.store import StoredCell

PLACE = Path(__file__).parents[1] / "benchmarks" / "scheduler.py"


@pytest.fixture(scope="module")
def scheduler():
    spec = importlib.util.spec_from_file_location("benchmark_scheduler", PLACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def stored(number: int, seconds: float, sparsity: float | None) -> StoredCell:
    stack = (
        [] if sparsity is None else [MemberSpec(method="magnitude", version=1, knobs={}, budget={"sparsity": sparsity})]
    )
    spec = CellSpec(
        system=SystemSpec(kind="causal-lm", ref="path:m", fingerprint="f", dtype="float32"),
        stack=stack,
        task=TaskSpec(id=f"task-{number % 3}", version=1, definition="d", data="d"),
    )
    place = Placement(suite="s", suite_version=1, grid="g", family="pruning", baseline=None, label="l")
    outcome = Outcome(status="ok", seconds=seconds, prepare_seconds=0.1 * bool(stack), flops_dense=1e9 * seconds)
    record = CellRecord(cell=f"{number:016x}", placement=place, outcome=outcome)
    return StoredCell(record.cell, spec, record, Environment(hardware="h"), Path())


@pytest.fixture(scope="module")
def work(scheduler):
    cells = [stored(i, 2.0 + i % 5, None if i < 3 else i / 20) for i in range(15)]
    return scheduler.Work.of(cells, 900, 3, random.Random(0))


@pytest.mark.parametrize("workers", [1, 8, 64])
def test_time_adds_up_and_every_cell_is_run_once(scheduler, work, workers):
    done = scheduler.simulate(work, workers, load=5.0)
    assert Counter(c.id for _, group in done.order for c in group.cells) == Counter(c.id for c in work.cells)
    evaluating = sum(work.seconds.values())
    # Apart from the driver's answers, which take microseconds, all time is accounted for.
    busy = evaluating + done.loading + done.preparing
    assert sum(done.ends) - scheduler.START * workers == pytest.approx(busy, rel=0.01, abs=1.0)
    assert max(done.ends) - scheduler.START >= busy / workers * 0.999
    used = {index for index, _ in done.order}
    assert done.loads >= max(len(work.sizes), len(used))
    table = done.table(work)
    assert 0 < table["utilisation"] <= 1
    assert table["share of time waiting at the end"] < 0.3  # with 14 cells for each of 64 workers


def test_one_worker_loads_each_model_once_and_a_worker_stays_with_its_model(scheduler, work):
    assert scheduler.simulate(work, 1, load=5.0).loads == len(work.sizes)
    assert scheduler.simulate(work, 8, load=5.0).loads <= 8 + 3 * len(work.sizes)
