"""Running a suite from start to end: plan, skip what is stored, execute, report progress."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError, IntegrityError, UnknownNameError, shown
from sparsebench.executors import EXECUTORS, Stop, Workers
from sparsebench.packing import SUFFIX
from sparsebench.plan import Plan, plan
from sparsebench.planned_cell import PlannedCell
from sparsebench.process_workers import recruited
from sparsebench.remote import Remote, address
from sparsebench.store import Store
from sparsebench.suite import Suite
from sparsebench.suite_source import load_suite

if TYPE_CHECKING:
    from sparsebench.runner import CellDone


STOPPING = (
    b"\nstopping after the cell in flight, once more stops at once; the same command goes on where this one stopped\n"
)


@dataclass(frozen=True)
class RunOutcome:
    """What came of a run.

    Attributes:
        folder: The results folder.
        done: Cells computed now.
        skipped: Cells that were stored already.
        failed: Cells that failed now.
        left: Cells that were not begun.
        interrupted: Whether the user stopped it.
        lost: Cells that were stored and are not there any more: the folder was moved or emptied during the run.
        notes: What is odd about the data.
    """

    folder: Path
    done: int
    skipped: int
    failed: int
    left: int
    interrupted: bool
    lost: int = 0
    notes: tuple[str, ...] = ()


def results_folder(suite: Suite, out: Path | None) -> Path:
    """Where a suite's results go.

    Raises:
        InputError: It is the name of a packed file.
    """
    if out is not None and str(out).endswith(SUFFIX):
        raise InputError(
            f"{out} is the name of a packed file, and a run writes a folder", "sparsebench export packs it"
        )
    return out if out is not None else Path("results") / suite.suite


def of_one_suite(store: Store, suite: Suite, folder: Path) -> None:
    """Cells are judged by the margins of the one suite that their folder names, so that another has one of its own.

    Raises:
        InputError: The folder is another suite's.
    """
    try:
        held = store.suite().get("suite")
    except IntegrityError:
        return  # it is written anew
    name = held.get("suite") if isinstance(held, dict) else None
    if name is not None and name != suite.suite:
        raise InputError(f"{folder} holds results of the suite {name}, not of {suite.suite}", "give another --out")


def planned(suite: str | Suite, model: str | None = None, limit: int | None = None, device: str | None = None) -> Plan:
    """A suite's plan, with `model` in the place of its language model."""
    loaded = suite if isinstance(suite, Suite) else load_suite(suite)
    if model is not None:
        loaded = loaded.with_model(model)
    return plan(loaded, limit, chosen_device(device))


def chosen_device(device: str | None) -> str:
    """`device`, or cuda where there is one.

    Raises:
        InputError: There is no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"no device {device!r} here", f"there are: {', '.join(_devices())}") from None
    return device


def _devices() -> list[str]:
    import torch

    kinds = [
        kind for kind in ("cuda", "mps", "xpu") if (module := getattr(torch, kind, None)) and module.is_available()
    ]
    counted = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *kinds, *counted]


def run_suite(
    suite: str | Suite,
    out: Path | None = None,
    model: str | None = None,
    *,
    limit: int | None = None,
    executor: str = "inline",
    workers: int = 2,
    gpus: float | None = None,
    ray_address: str | None = None,
    shard: str | None = None,
    only: Sequence[str] = (),
    device: str | None = None,
    progress: bool = False,
) -> RunOutcome:
    """Run a suite and store its cells.

    Args:
        suite: A suite's name, the path of its YAML, or a `Suite`.
        out: Results folder; `results/<suite>` when None.
        model: Reference that replaces the suite's language model.
        limit: Samples of each task at most.
        executor: A name of `executors.EXECUTORS`.
        workers: Processes or actors.
        gpus: GPUs of each Ray actor, or a share of one.
        ray_address: Cluster that the ray executor uses.
        shard: `I/N`: part I of N only.
        only: Ids of cells: these and their baselines only.
        device: `cpu`, `cuda`; None: cuda where there is one.
        progress: Whether a bar is shown.

    Raises:
        InputError: The suite, a reference or an option is wrong; nothing was run.
    """
    if executor not in EXECUTORS:
        raise UnknownNameError("executor", executor, EXECUTORS)
    device = chosen_device(device)
    with ExitStack() as contexts:
        recruits = contexts.enter_context(recruited(workers, device)) if executor == "process" else {}
        staff = Workers(workers, gpus, ray_address, recruits)
        made = planned(suite, model, limit, device)
        if only and shard is not None:
            raise InputError("chosen cells and a shard: one of the two")
        cells = made.only(only) if only else made.cells if shard is None else made.shard(*_shard(shard))
        folder = results_folder(made.suite, out)
        remote = Remote(elsewhere) if (elsewhere := address(folder)) else None
        store = Store.create(remote.fetch() if remote else folder)
        of_one_suite(store, made.suite, folder)
        store.sweep()
        finished = store.finished_among(cell.id for cell in cells)
        todo = [cell for cell in cells if cell.id not in finished]
        asked = {"suite": made.suite.model_dump(mode="json"), "lock": made.lock}
        store.write_suite(asked)
        tally = _Tally(todo, len(cells) - len(todo), progress)

        def on_done(done: CellDone) -> None:
            if remote is not None:
                remote.send(done.id)
            tally.on_done(done)

        if remote is not None:
            remote.send_suite()
            for identity in sorted(finished - remote.there):  # sending them failed before
                remote.send(identity)
        with tally, interruptible() as stop:
            EXECUTORS[executor](todo, store, device, made, staff, on_done, stop)
        lost = len(finished | tally.ids) - len(store.recorded(finished | tally.ids))
        if lost:  # what was stored since is in a new folder, which has no suite
            store = Store.create(store.root)
            store.write_suite(asked)
        store.sweep()
        left = len(todo) - tally.done
        return RunOutcome(
            store.root,
            tally.done,
            len(cells) - len(todo),
            tally.failed,
            left,
            stop.asked and left > 0,
            lost,
            tuple(made.notes),
        )


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    numbers = slash and all(re.fullmatch(r"[0-9]{1,9}", part) for part in (index, count))
    if not numbers or not 1 <= int(index) <= int(count):
        raise InputError(f"shard {shown(text)}: must be I/N with 1 <= I <= N", "--shard 1/4")
    return int(index), int(count)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """The first interrupt lets the cell in flight finish, as does a request to terminate; the second stops at once."""
    stop = Stop()

    def ask(signum: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, STOPPING)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(each, ask) for each in signals]
    except ValueError:  # not in the main thread: whoever runs us handles interrupts
        yield stop
        return
    try:
        yield stop
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


class _Tally:
    """Counts finished cells and shows them, with the time left by predicted work."""

    def __init__(self, todo: list[PlannedCell], skipped: int, shown: bool) -> None:
        self.total = len(todo)
        self.work = {cell.id: max(cell.flops, 1.0) for cell in todo}
        self.skipped = skipped
        self.done = 0
        self.ids: set[str] = set()
        self.failed = 0
        self._bar: Any = None
        self._task: Any = None
        self._shown = shown

    def __enter__(self) -> _Tally:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            console = Console(stderr=True, highlight=False)
            if self.skipped:
                console.print(f"{self.skipped} cells are stored already.")
            self._bar = Progress(
                TextColumn("{task.fields[cells]}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}", markup=False),
                console=console,
                transient=False,
            )
            self._bar.start()
            total = sum(self.work.values())
            self._task = self._bar.add_task("loading", total=total or 1, cells=f"0/{self.total}", left="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_done(self, done: CellDone) -> None:
        """A cell is finished, or one that was said to be is taken back."""
        self.done += not done.withdrawn
        self.ids.add(done.id)
        self.failed += done.status != "ok"
        if self._bar is None:
            return
        if done.error:
            said = f"failed {done.label} on {done.task}: {done.error.splitlines()[0]}"
            self._bar.console.print(said, style="red", markup=False)
        if done.withdrawn:
            return
        task = self._bar.tasks[0]
        completed = task.completed + self.work.get(done.id, 1.0)
        elapsed = task.elapsed or 0.0
        left = elapsed * (task.total - completed) / completed if completed else 0.0
        self._bar.update(
            self._task,
            completed=completed,
            description=f"{done.label}, {done.task}",
            cells=f"{self.done}/{self.total}",
            left=f"{int(left) // 60}:{int(left) % 60:02d} left" if self.done < self.total else "",
        )
