"""Where cells run: in this process, or in worker processes that get plain JSON and write to the store themselves."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sparsebench import environment
from sparsebench.errors import StorageError
from sparsebench.plan import Plan, PlannedCell
from sparsebench.runner import CellDone, OnDone, Session, done_already, grouped, run_cells, store_failure
from sparsebench.schedule import Schedule
from sparsebench.store import Store

if TYPE_CHECKING:
    from typing import IO


@dataclass
class Stop:
    """Set when the user asks to stop."""

    asked: bool = False


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each has.

    Attributes:
        count: Processes or actors at most.
        gpus: GPUs of each Ray actor, or a share of one; None: an even share of those that there are.
        address: Ray cluster to use; None: the one that RAY_ADDRESS names, or else a local one.
    """

    count: int = 2
    gpus: float | None = None
    address: str | None = None


Execute = Callable[[list[PlannedCell], Store, str, Plan, Workers, OnDone, Stop], None]


def inline(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """One after another in this process."""
    session = Session(device=device)
    for (task, limit, system), bound in plan.tasks.items():
        session.tasks[task, limit, plan.lock["systems"][system]["ref"]] = bound
    run_cells(cells, store, session, on_done, lambda: stop.asked)


def process(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """In processes; on several GPUs each has one, on a CPU each has its share of the cores.

    When this process dies, its workers end at once.
    """
    pool(cells, store, device, "process", lambda i, n: ProcessWorker(i, n, device, store.root), workers, on_done, stop)


def ray(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """In actors of a Ray cluster, which keep a model loaded.

    Raises:
        MissingError: Ray is not installed, or there is no such cluster.
    """
    from sparsebench.ray_workers import cluster

    with cluster(device, workers) as start:
        pool(cells, store, device, "ray", lambda i, n: start(i, n, store.root), workers, on_done, stop)


class Worker(Protocol):
    """Where groups run, one after another."""

    @property
    def alive(self) -> bool:
        """Whether it can take a group."""

    @property
    def code(self) -> int | str | None:
        """What it said when it ended."""

    def run(self, group: list[PlannedCell]) -> Iterator[CellDone]:
        """Cells as they finish; fewer than were given when the worker dies.

        Raises:
            StorageError: It cannot write results.
        """

    def kill(self) -> None:
        """End it at once."""

    def close(self) -> None:
        """Let it end."""


@dataclass(frozen=True)
class Group:
    """Cells that are run together, as the schedule sees them."""

    cells: list[PlannedCell]
    system: str
    methods: str
    cost: float

    @classmethod
    def of(cls, cells: list[PlannedCell]) -> Group:
        """Cells with one system and stack."""
        spec = cells[0].spec
        system = json.dumps([spec.system.kind, spec.system.ref, spec.system.dtype])
        methods = json.dumps([[[m.method, m.knobs] for m in spec.stack], spec.calibration, spec.seed], sort_keys=True)
        return cls(cells, system, methods, sum(cell.flops for cell in cells))


def pool(
    cells: list[PlannedCell],
    store: Store,
    device: str,
    executor: str,
    start: Callable[[int, int], Worker],
    workers: Workers,
    on_done: OnDone,
    stop: Stop,
) -> None:
    """Groups of cells through workers.

    A worker that dies takes down the cell in flight only: it and the rest of its group go to another worker; a cell on
    which two workers died has failed.
    """
    schedule = Schedule(Group.of(group) for group in grouped(cells))
    died: Counter[str] = Counter()
    lock = threading.Lock()
    running: list[Worker] = []
    errors: list[Exception] = []

    def said(done: CellDone) -> None:
        with lock:
            on_done(done)

    def next_group(last: Group | None) -> Group | None:
        with lock:
            return None if stop.asked or errors else schedule.take(last)

    def after_death(left: list[PlannedCell], worker: Worker) -> None:
        """Report what the dead worker stored but could not say, and give the rest to another one."""
        store.sweep()
        while left and store.finished(left[0].id):
            said(done_already(left.pop(0)))
        if left and died[left[0].id]:
            error = ChildProcessError(f"two worker processes died on this cell, the last with code {worker.code}")
            said(store_failure(left.pop(0), error, store, Session(device=device, executor=executor)))
        if left:
            with lock:
                died[left[0].id] += 1
                schedule.put(Group.of(left))

    def serve(index: int) -> None:
        worker: Worker | None = None
        group: Group | None = None
        try:
            while (group := next_group(group)) is not None:
                if worker is None or not worker.alive:
                    worker = start(index, workers.count)
                    running.append(worker)
                left = {cell.id: cell for cell in group.cells}
                for done in worker.run(group.cells):
                    del left[done.id]
                    said(done)
                    if stop.asked:
                        worker.kill()  # nothing is lost but what it has just begun
                if left and not stop.asked:
                    after_death(list(left.values()), worker)
        except Exception as error:
            errors.append(error)
        finally:
            if worker is not None:
                worker.close()

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(max(1, min(workers.count, len(schedule))))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():  # a signal that another thread got is handled between two waits only
                thread.join(timeout=0.1)
    except BaseException:
        stop.asked = True
        for worker in running:
            worker.kill()
        raise
    if errors:
        raise errors[0]


class ProcessWorker:
    """One worker process, spoken to in lines of JSON."""

    def __init__(self, index: int, count: int, device: str, results: Path) -> None:
        variables = dict(os.environ)
        if device.startswith("cuda"):
            variables["CUDA_VISIBLE_DEVICES"] = _gpu(device, index)
            device = "cuda"
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            given = variables.get("OMP_NUM_THREADS", "")
            share = max(1, cores // count)
            variables["OMP_NUM_THREADS"] = str(min(share, int(given)) if given.isdecimal() and int(given) else share)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsebench.worker", str(results), device, environment.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it can take a group."""
        return self.process.poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code; minus the signal that ended it."""
        return self.process.poll()

    def run(self, group: list[PlannedCell]) -> Iterator[CellDone]:
        """Cells as they finish; fewer than were given when the worker dies."""
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps([cell.model_dump(mode="json") for cell in group]) + "\n")
            stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if message == GROUP_DONE:
                    return
                if "unwritable" in message:
                    raise StorageError(message["unwritable"], message["hint"])
                yield CellDone(**message)
        except (BrokenPipeError, json.JSONDecodeError):
            self.kill()
        self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def close(self) -> None:
        """Let it end."""
        with suppress(BrokenPipeError):
            self._pipes()[0].close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self._pipes()[1].close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process.stdin is None or self.process.stdout is None:
            raise BrokenPipeError
        return self.process.stdin, self.process.stdout


def _gpu(device: str, index: int) -> str:
    """The GPU of a worker: the one that `device` names, or else its share of all."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    number = device.partition(":")[2]
    return devices[int(number) if number else index % len(devices)]


def serve(results: str, device: str, command: str, lines: IO[str], out: IO[str]) -> None:
    """A worker's life: a line of cells in, a line for each finished cell out, until the input ends.

    Input that ends while cells are in hand means that the driver died: the process ends at once.
    """
    session = Session(device=device, executor="process", command=command)
    store = Store(results)
    groups: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        for line in lines:
            busy.set()
            groups.put(line)
        if busy.is_set():
            os._exit(ORPHANED)
        groups.put(None)

    def say(message: object) -> None:
        try:
            out.write(json.dumps(message) + "\n")
            out.flush()
        except BrokenPipeError:
            os._exit(ORPHANED)

    threading.Thread(target=listen, daemon=True).start()
    while (line := groups.get()) is not None:
        cells = [PlannedCell.model_validate(data) for data in json.loads(line)]
        try:
            run_cells(cells, store, session, lambda done: say(asdict(done)))
        except StorageError as error:
            say({"unwritable": error.message, "hint": error.hint})
        busy.clear()
        say(GROUP_DONE)


GROUP_DONE = "group done"
ORPHANED = 70
"""Exit code of a worker whose driver is gone."""
EXECUTORS: dict[str, Execute] = {"inline": inline, "process": process, "ray": ray}
