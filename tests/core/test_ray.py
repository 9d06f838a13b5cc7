"""The ray executor, on a local cluster of two cores: the same cells, ids and bytes as in this process."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import faults
import pytest
import torch

from sparsebench import suite_run
from sparsebench.errors import MissingError
from sparsebench.store import Store
from sparsebench.suite_run import run_suite

CELLS = 13


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, reference: str) -> Path:
    return faults.write_suite(tmp_path_factory.mktemp("suite"), reference)


@pytest.fixture(scope="module")
def inline(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, str]]:
    out = tmp_path_factory.mktemp("inline")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_suite(str(suite), out)
    finally:
        torch.set_num_threads(threads)
    return faults.essence(out)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def single_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_actors_store_what_this_process_stores(cluster, suite, inline, tmp_path):
    outcome = run_suite(str(suite), tmp_path, executor="ray", workers=2)
    assert (outcome.done, outcome.failed, outcome.left) == (CELLS, 0, 0)
    assert faults.essence(tmp_path) == inline
    assert {cell.environment.executor for cell in Store(tmp_path)} == {"ray"}
    assert run_suite(str(suite), tmp_path, executor="ray", workers=2).skipped == CELLS


def test_an_actor_that_is_killed_loses_no_cell(cluster, suite, inline, tmp_path, monkeypatch):
    said: Counter[str] = Counter()
    killed: list[int] = []
    real = suite_run._Tally.on_done

    def on_done(tally, done):
        real(tally, done)
        said[done.id] += 1
        if len(said) == 3:
            killed.extend(actors())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(suite_run._Tally, "on_done", on_done)
    outcome = run_suite(str(suite), tmp_path, executor="ray", workers=1)
    assert (outcome.done, outcome.failed, outcome.left) == (CELLS, 0, 0)
    assert set(said.values()) == {1}
    assert killed
    assert faults.essence(tmp_path) == inline


def actors() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"_Actor" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_cluster_without_gpu_says_so(cluster, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite_run, "chosen_device", lambda device: "cuda")
    with pytest.raises(MissingError, match="has no GPU"):
        run_suite(str(suite), tmp_path, executor="ray")
