"""Where cells run: in this process, or in worker processes that get plain JSON and write to the store themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.plan import Plan, PlannedCell
from sparsebench.runner import CellDone, OnDone, Session, grouped, run_cells
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
        ref = plan.lock["systems"][system]["ref"]
        session.tasks[task, limit, ref] = bound
    for group in grouped(cells):
        if stop.asked:
            return
        run_cells(group, store, session, on_done, lambda: stop.asked)


def process(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: int, on_done: OnDone, stop: Stop
) -> None:
    """In `workers` processes; on several GPUs each has one, on a CPU each has its share of the cores.

    A worker that dies takes down the cell in flight only: the rest of its group goes to another worker, once.
    """
    groups = deque(sorted(grouped(cells), key=lambda group: -sum(cell.flops for cell in group)))
    tries: dict[str, int] = {}
    lock = threading.Lock()

    def serve(index: int) -> None:
        worker: _Worker | None = None
        while True:
            with lock:
                group = groups.popleft() if groups and not stop.asked else None
            if group is None:
                break
            worker = worker if worker is not None and worker.alive else _Worker(index, workers, device, store.root)
            finished = set()
            for done in worker.run(group):
                finished.add(done.id)
                with lock:
                    on_done(done)
            left = [cell for cell in group if cell.id not in finished]
            if left:
                _again_or_failed(left, tries, groups, lock, on_done)
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(max(1, min(workers, len(groups))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _again_or_failed(
    left: list[PlannedCell],
    tries: dict[str, int],
    groups: deque[list[PlannedCell]],
    lock: threading.Lock,
    on_done: OnDone,
) -> None:
    """A worker died: the cell in flight may be at fault, so no cell is given to more than two workers."""
    with lock:
        for cell in left[:1]:
            tries[cell.id] = tries.get(cell.id, 0) + 1
        again = [cell for cell in left if tries.get(cell.id, 0) < 2]
        if again:
            groups.append(again)
        for cell in left:
            if tries.get(cell.id, 0) >= 2:
                message = "the worker process died twice on this cell"
                on_done(CellDone(cell.id, cell.placement.label, cell.spec.task.id, "failed", 0.0, cell.flops, message))


class _Worker:
    """One worker process, spoken to in lines of JSON."""

    def __init__(self, index: int, count: int, device: str, results: Path) -> None:
        environment = dict(os.environ)
        if device.startswith("cuda"):
            visible = environment.get("CUDA_VISIBLE_DEVICES", "")
            devices = visible.split(",") if visible else [str(i) for i in range(_gpus())]
            environment["CUDA_VISIBLE_DEVICES"] = devices[index % max(1, len(devices))]
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment["OMP_NUM_THREADS"] = str(max(1, cores // count))
        command = [sys.executable, "-m", "sparsebench.worker", str(results), "cuda" if device.startswith("cuda") else device]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def run(self, group: list[PlannedCell]) -> list[CellDone]:
        """Cells as they finish; fewer than were given when the worker died."""
        stdin, stdout = self._pipes()
        finished = []
        try:
            stdin.write(json.dumps([cell.model_dump(mode="json") for cell in group]) + "\n")
            stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if message == "group done":
                    return finished
                finished.append(CellDone(**message))
        except (BrokenPipeError, json.JSONDecodeError):
            pass
        self.process.wait()
        return finished

    def close(self) -> None:
        """Let the worker end."""
        stdin, _ = self._pipes()
        stdin.close()
        self.process.wait(timeout=60)

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process.stdin is None or self.process.stdout is None:
            raise BrokenPipeError
        return self.process.stdin, self.process.stdout


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def serve(results: str, device: str, lines: IO[str], out: IO[str]) -> None:
    """A worker's life: a line of cells in, a line for each finished cell out, until the input ends."""
    session = Session(device=device, executor="process")
    store = Store(results)
    for line in lines:
        cells = [PlannedCell.model_validate(data) for data in json.loads(line)]

        def said(done: CellDone) -> None:
            out.write(json.dumps(asdict(done)) + "\n")
            out.flush()

        run_cells(cells, store, session, said)
        out.write(json.dumps("group done") + "\n")
        out.flush()


EXECUTORS: dict[str, Execute] = {"inline": inline, "process": process}
