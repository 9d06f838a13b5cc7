"""Worker processes: each keeps a model loaded, gets cells as lines of JSON and writes to the store itself."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench import environment
from sparsebench.errors import StorageError
from sparsebench.planned_cell import PlannedCell
from sparsebench.runner import CellDone, Session, run_cells
from sparsebench.store import Store

if TYPE_CHECKING:
    from typing import IO

GROUP_DONE = "group done"
EARLY = 8
"""Workers at most that are started before it is known how many are needed."""
ORPHANED = 70
"""Exit code of a worker whose driver is gone."""


class ProcessWorker:
    """One worker process, spoken to in lines of JSON. Until it is told where results go, it loads its libraries."""

    def __init__(self, index: int, count: int, device: str, devices: int = 1) -> None:
        variables = {**os.environ, **thread_limits(count)}
        if device.startswith("cuda"):
            groups = gpu_groups(device, devices)
            variables["CUDA_VISIBLE_DEVICES"] = groups[index % len(groups)]
            device = "cuda"
        self.device = device
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsebench.worker"],
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

    def begin(self, results: Path) -> None:
        """Say where results go; nothing runs before."""
        self._say({"results": str(results), "device": self.device, "command": environment.command()})

    def run(self, group: list[PlannedCell]) -> Iterator[CellDone]:
        """Cells as they finish; fewer than were given when the worker dies."""
        _, stdout = self._pipes()
        try:
            self._say([cell.model_dump(mode="json") for cell in group])
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

    def _say(self, message: object) -> None:
        stdin, _ = self._pipes()
        with suppress(BrokenPipeError):  # that it is dead shows when it should answer
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process.stdin is None or self.process.stdout is None:
            raise BrokenPipeError
        return self.process.stdin, self.process.stdout


def thread_limits(workers: int) -> dict[str, str]:
    """Variables that keep so many workers from using more threads than there are cores; a lower limit stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    limits = {}
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # of matrix products, and of tokenizers
        given = os.environ.get(name, "")
        limits[name] = str(min(share, int(given)) if given.isdecimal() and int(given) else share)
    return limits


def gpu_groups(device: str, size: int = 1) -> list[str]:
    """The GPUs by so many, each group as CUDA_VISIBLE_DEVICES names it; one where `device` says at which it begins."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        devices = visible.split(",")
    else:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    number = device.partition(":")[2]
    starts = [int(number)] if number else range(0, len(devices) - size + 1, size)
    return [",".join(devices[first : first + size]) for first in starts]


@contextmanager
def recruited(count: int, device: str) -> Iterator[dict[int, ProcessWorker]]:
    """The first workers by number, which load their libraries meanwhile; who needs one takes it out, the rest end."""
    recruits = {index: ProcessWorker(index, count, device) for index in range(min(count, EARLY))}
    try:
        yield recruits
    finally:
        for worker in recruits.values():
            worker.kill()
            worker.close()


def serve(lines: IO[str], out: IO[str]) -> None:
    """A worker's life: a line that says where results go, then a line of cells in and one for each finished cell out.

    It ends with the input; input that ends while cells are in hand means that the driver died, and ends it at once.
    """
    groups: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        for number, line in enumerate(lines):
            if number:
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
    load_libraries()
    if (first := groups.get()) is None:
        return
    told = json.loads(first)
    session = Session(device=told["device"], executor="process", command=told["command"])
    store = Store(told["results"])
    while (line := groups.get()) is not None:
        cells = [PlannedCell.model_validate(data) for data in json.loads(line)]
        try:
            run_cells(cells, store, session, lambda done: say(asdict(done)))
        except StorageError as error:
            say({"unwritable": error.message, "hint": error.hint})
        busy.clear()
        say(GROUP_DONE)


def load_libraries() -> None:
    """What takes seconds to import, before anyone waits for it."""
    from transformers import AutoModelForCausalLM  # noqa: F401

    import sparsebench.engine.lm
    import sparsebench.systems.loading  # noqa: F401
