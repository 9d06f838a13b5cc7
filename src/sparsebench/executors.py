"""Where cells run: in this process, or in worker processes that get plain JSON and write to the store themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench import environment
from sparsebench.plan import Plan, PlannedCell
from sparsebench.runner import CellDone, OnDone, Session, grouped, run_cells, store_failure
from sparsebench.store import Store

if TYPE_CHECKING:
    from typing import IO


@dataclass
class Stop:
    """Set when the user asks to stop."""

    asked: bool = False


Execute = Callable[[list[PlannedCell], Store, str, Plan, int, OnDone, Stop], None]


def inline(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: int, on_done: OnDone, stop: Stop
) -> None:
    """One after another in this process."""
    session = Session(device=device)
    for (task, limit, system), bound in plan.tasks.items():
        session.tasks[task, limit, plan.lock["systems"][system]["ref"]] = bound
    run_cells(cells, store, session, on_done, lambda: stop.asked)


def process(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: int, on_done: OnDone, stop: Stop
) -> None:
    """In `workers` processes; on several GPUs each has one, on a CPU each has its share of the cores.

    A worker that dies takes down the cell in flight only: it and the rest of its group go to another worker; a cell on
    which two workers died has failed.
    """
    groups = deque(sorted(grouped(cells), key=lambda group: -sum(cell.flops for cell in group)))
    died: Counter[str] = Counter()
    lock = threading.Lock()
    running: list[_Worker] = []
    errors: list[Exception] = []

    def said(done: CellDone) -> None:
        with lock:
            on_done(done)

    def next_group() -> list[PlannedCell] | None:
        with lock:
            return groups.popleft() if groups and not stop.asked else None

    def after_death(left: list[PlannedCell], worker: _Worker) -> None:
        """Report what the dead worker stored but could not say, and give the rest to another one."""
        while left and store.finished(left[0].id):
            said(_done(left.pop(0)))
        if left and died[left[0].id]:
            error = ChildProcessError(f"two worker processes died on this cell, the last with code {worker.code}")
            said(store_failure(left.pop(0), error, store, Session(device=device, executor="process")))
        if left:
            with lock:
                died[left[0].id] += 1
                groups.append(left)

    def serve(index: int) -> None:
        worker: _Worker | None = None
        try:
            while (group := next_group()) is not None:
                if worker is None or not worker.alive:
                    worker = _Worker(index, workers, device, store.root)
                    running.append(worker)
                left = {cell.id: cell for cell in group}
                for done in worker.run(group):
                    del left[done.id]
                    said(done)
                    if stop.asked:
                        worker.kill()  # nothing is lost but what it has just begun
                if left and not stop.asked:
                    after_death(list(left.values()), worker)
        except Exception as error:
            errors.append(error)
            groups.clear()
        finally:
            if worker is not None:
                worker.close()

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(max(1, min(workers, len(groups))))]
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


def _done(cell: PlannedCell) -> CellDone:
    return CellDone(cell.id, cell.placement.label, cell.spec.task.id, "ok", 0.0, cell.flops)


class _Worker:
    """One worker process, spoken to in lines of JSON."""

    def __init__(self, index: int, count: int, device: str, results: Path) -> None:
        variables = dict(os.environ)
        if device.startswith("cuda"):
            variables["CUDA_VISIBLE_DEVICES"] = _gpu(device, index)
            device = "cuda"
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            variables["OMP_NUM_THREADS"] = str(max(1, cores // count))
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
    """A worker's life: a line of cells in, a line for each finished cell out, until the input ends."""
    session = Session(device=device, executor="process", command=command)
    store = Store(results)

    def say(message: object) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    for line in lines:
        cells = [PlannedCell.model_validate(data) for data in json.loads(line)]
        run_cells(cells, store, session, lambda done: say(asdict(done)))
        say(GROUP_DONE)


GROUP_DONE = "group done"
EXECUTORS: dict[str, Execute] = {"inline": inline, "process": process}
