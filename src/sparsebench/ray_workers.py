"""Actors of a Ray cluster as workers: each keeps a model loaded, takes groups of cells as JSON and stores them."""

from __future__ import annotations

import json
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.errors import InputError, MissingError, StorageError
from sparsebench.executors import Workers
from sparsebench.planned_cell import PlannedCell
from sparsebench.runner import CellDone, Session, run_cells
from sparsebench.store import Store

Start = Callable[[int, int, Path], "RayWorker"]

OBJECT_STORE = 128 * 2**20
"""Bytes of a local cluster's object store: only lines of JSON pass through it."""


@contextmanager
def cluster(device: str, workers: Workers, devices: int = 1) -> Iterator[tuple[Start, Workers]]:
    """Connect to a cluster, and give what starts a worker there, and how many it has room for.

    A cluster that this process is connected to already is used and left as it is; so is the one at `workers.address` or
    RAY_ADDRESS. Else one is started on this machine for as long as the context lasts.

    Args:
        device: Where models run.
        workers: How many actors there are, and what each has.
        devices: GPUs that each needs, all of one machine.

    Raises:
        MissingError: Ray is not installed, there is no such cluster, or it has not the GPUs.
        InputError: `workers` gives an actor fewer GPUs than it needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingError("the ray executor needs Ray", "pip install 'sparsebench[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers.address or os.environ.get("RAY_ADDRESS"))
    try:
        resources: dict[str, float] = ray.cluster_resources()
        gpus = _gpus(resources.get("GPU", 0.0), device, workers)
        if device.startswith("cuda") and devices > 1:
            workers = _several(ray, workers, devices)
            gpus = float(devices)
        cpus = max(1, int(resources.get("CPU", 1.0)) // max(1, workers.count))
        actor = ray.remote(_Actor)

        def start(index: int, count: int, results: Path) -> RayWorker:
            variables = {"OMP_NUM_THREADS": str(_threads(cpus)), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            made = actor.options(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": variables})
            place = "cuda" if device.startswith("cuda") else device
            return RayWorker(made.remote(str(results.absolute()), place, environment.command()))

        yield start, workers
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "address": "local"}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise MissingError(
            f"no Ray cluster {where}: {str(error).splitlines()[0]}", "ray status --address=..."
        ) from error


def _gpus(total: float, device: str, workers: Workers) -> float:
    """GPUs of each actor."""
    if not device.startswith("cuda"):
        return 0.0
    if total <= 0:
        raise MissingError("the Ray cluster has no GPU", "choose --device cpu")
    return workers.gpus if workers.gpus is not None else min(1.0, total / workers.count)


def _several(ray: Any, workers: Workers, devices: int) -> Workers:
    """As many actors at most as find so many GPUs of one machine each."""
    there = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    most = max(there, default=0)
    if most < devices:
        raise MissingError(
            f"a model is to be spread over {devices} GPUs, and no machine of the Ray cluster has more than {most}",
            "`devices` of the system in the suite says how many",
        )
    if workers.gpus not in (None, devices):
        raise InputError(
            f"an actor has {devices} GPUs where a model is spread over them, not {workers.gpus:g}", "leave out --gpus"
        )
    return replace(workers, count=min(workers.count, sum(count // devices for count in there)))


def _threads(cpus: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cpus, int(given)) if given.isdecimal() and int(given) else cpus


class _Actor:
    """What runs in the cluster."""

    def __init__(self, results: str, device: str, command: str) -> None:
        self.session = Session(device=device, executor="ray", command=command)
        self.store = Store(results)

    def run(self, group: str) -> Iterator[str]:
        """Lines of JSON: one for each finished cell."""
        if not self.store.cells_folder.is_dir():
            yield json.dumps(
                {
                    "unwritable": f"{self.store.root} is not there on a machine of the Ray cluster",
                    "hint": "name a folder of a file system that all of its machines share",
                }
            )
            return
        cells = [PlannedCell.model_validate(data) for data in json.loads(group)]
        said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                run_cells(cells, self.store, self.session, lambda done: said.put(asdict(done)))
            except StorageError as error:
                said.put({"unwritable": error.message, "hint": error.hint})
            except Exception:
                said.put({"broken": traceback.format_exc()})
            finally:
                said.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (message := said.get()) is not None:
            yield json.dumps(message)


class RayWorker:
    """One actor, as the pool sees it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.alive = True
        self.code: int | str | None = None

    def run(self, group: list[PlannedCell]) -> Iterator[CellDone]:
        """Cells as they finish; fewer than were given when the actor dies.

        Raises:
            StorageError: It cannot write results.
        """
        import ray

        text = json.dumps([cell.model_dump(mode="json") for cell in group])
        try:
            for answer in self.actor.run.options(num_returns="streaming").remote(text):
                message = json.loads(ray.get(answer))
                if "unwritable" in message:
                    raise StorageError(message["unwritable"], message["hint"])
                if "broken" in message:
                    self.code = message["broken"]
                    self.kill()
                    return
                yield CellDone(**message)
        except ray.exceptions.RayError as error:
            self.code = str(error).splitlines()[0]
            self.alive = False

    def kill(self) -> None:
        """End it at once."""
        import ray

        self.alive = False
        with suppress(Exception):  # it, or its cluster, is gone already
            ray.kill(self.actor)

    def close(self) -> None:
        """Let it end: it holds nothing that is not stored."""
        self.kill()
