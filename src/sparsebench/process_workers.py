"""Worker processes: each keeps a model loaded, gets cells as lines of JSON and writes to the store itself."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
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
ORPHANED = 70
"""Exit code of a worker whose driver is gone."""


class ProcessWorker:
    """One worker process, spoken to in lines of JSON."""

    def __init__(self, index: int, count: int, device: str, results: Path) -> None:
        variables = {**os.environ, **thread_limits(count)}
        if device.startswith("cuda"):
            variables["CUDA_VISIBLE_DEVICES"] = gpu_of(device, index)
            device = "cuda"
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


def thread_limits(workers: int) -> dict[str, str]:
    """Variables that keep so many workers from using more threads than there are cores; a lower limit stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    limits = {}
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # of matrix products, and of tokenizers
        given = os.environ.get(name, "")
        limits[name] = str(min(share, int(given)) if given.isdecimal() and int(given) else share)
    return limits


def gpu_of(device: str, index: int) -> str:
    """The GPU of a worker, as CUDA_VISIBLE_DEVICES names it: the one that `device` names, or else they take turns.

    With more workers than GPUs several share one.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        devices = visible.split(",")
    else:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
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
