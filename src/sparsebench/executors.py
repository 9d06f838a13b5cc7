"""Where cells run: in this process, or in worker processes that get plain JSON and write to the store themselves."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from sparsebench.plan import Plan
from sparsebench.planned_cell import PlannedCell
from sparsebench.process_workers import ProcessWorker, gpu_groups
from sparsebench.runner import CellDone, OnDone, Session, done_already, grouped, run_cells, store_failure
from sparsebench.schedule import Kind, Pace, Schedule
from sparsebench.store import Store
from sparsebench.systems.spreading import devices_from


@dataclass
class Stop:
    """Set when the user asks to stop."""

    asked: bool = False


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each has.

    Attributes:
        count: Processes or actors at most.
        gpus: GPUs of each Ray actor, or a share of one; None: an even share of those that there are, or as many as a
            system is spread over.
        address: Ray cluster to use; None: the one that RAY_ADDRESS names, or else a local one.
        recruits: Processes that were started before it was known what they are to do, by number.
    """

    count: int = 2
    gpus: float | None = None
    address: str | None = None
    recruits: dict[int, ProcessWorker] = field(default_factory=dict)


Execute = Callable[[list[PlannedCell], Store, str, Plan, Workers, OnDone, Stop], None]


def inline(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """One after another in this process.

    Raises:
        InputError: A system is to be spread over more GPUs than there are.
    """
    devices_from(device, most_devices(cells))
    session = Session(device=device)
    for (task, limit, system), bound in plan.tasks.items():
        session.tasks[task, limit, plan.lock["systems"][system]["ref"]] = bound
    run_cells(cells, store, session, on_done, lambda: stop.asked)


def process(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """In processes; of several GPUs each has one, on a CPU its share of the cores.

    Where a system is spread over GPUs, each has that many to itself: there are no more workers than such groups. When
    this process dies, its workers end at once.

    Raises:
        InputError: A system is to be spread over more GPUs than there are.
    """
    devices = most_devices(cells)
    devices_from(device, devices)
    if devices > 1 and device.startswith("cuda"):
        workers = replace(workers, count=min(workers.count, len(gpu_groups(device, devices))))

    def start(index: int, count: int) -> ProcessWorker:
        recruit = workers.recruits.pop(index, None) if devices == 1 else None
        worker = recruit or ProcessWorker(index, count, device, devices)
        worker.begin(store.root)
        return worker

    pool(cells, store, device, "process", start, workers, on_done, stop)


def ray(
    cells: list[PlannedCell], store: Store, device: str, plan: Plan, workers: Workers, on_done: OnDone, stop: Stop
) -> None:
    """In actors of a Ray cluster, which keep a model loaded.

    Raises:
        MissingError: Ray is not installed, there is no such cluster, or no machine of it has as many GPUs as a system
            is spread over.
    """
    from sparsebench.ray_workers import cluster

    with cluster(device, workers, most_devices(cells)) as (start, workers):
        pool(cells, store, device, "ray", lambda i, n: start(i, n, store.root), workers, on_done, stop)


def most_devices(cells: Iterable[PlannedCell]) -> int:
    """GPUs that each worker needs: the most that one of the cells is spread over."""
    return max((cell.devices for cell in cells), default=1)


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


LEAST = 1e9
"""FLOPs that a cell counts as at least: without a model it has none, and takes its time all the same."""


@dataclass(frozen=True)
class Group:
    """Cells that are run together, as the schedule sees them."""

    cells: list[PlannedCell]
    system: str
    methods: str
    stack: str
    leads: bool

    @classmethod
    def of(cls, cells: list[PlannedCell], leads: bool = False) -> Group:
        """Cells with one system and stack."""
        spec = cells[0].spec
        system = json.dumps([spec.system.kind, spec.system.ref, spec.system.dtype, cells[0].devices])
        methods = json.dumps([[[m.method, m.knobs] for m in spec.stack], spec.calibration, spec.seed], sort_keys=True)
        stack = methods + json.dumps([m.budget for m in spec.stack]) if spec.stack else ""
        return cls(cells, system, methods, stack, leads)

    @cached_property
    def work(self) -> Counter[Kind]:
        """See `Work`."""
        found: Counter[Kind] = Counter()
        for cell in self.cells:
            found[kind_of(cell)] += predicted(cell)  # type: ignore[assignment]
        return found

    def cut(self, limit: float, pace: Pace) -> tuple[Group, Group | None]:
        """See `Work`; cells stay in their order."""
        spent, place, known = 0.0, 0, True
        for place, cell in enumerate(self.cells):
            spent += pace.seconds({kind_of(cell): predicted(cell)})
            alone = not (known and pace.knows(kind_of(cell)))
            if place and (alone or spent > limit):
                break
            known = not alone
        else:
            return self, None
        return replace(self, cells=self.cells[:place]), replace(self, cells=self.cells[place:])


def kind_of(cell: PlannedCell) -> Kind:
    """Task and methods of a cell."""
    return cell.spec.task.id, "+".join(member.method for member in cell.spec.stack)


def predicted(cell: PlannedCell) -> float:
    """Its FLOPs, for the schedule."""
    return max(cell.flops, LEAST)


def groups(cells: Iterable[PlannedCell]) -> list[Group]:
    """What the schedule hands out: cells with one system and stack, of which it gives a worker as many as is well."""
    cells = list(cells)
    baselines = {cell.placement.baseline for cell in cells}
    return [Group.of(group, any(cell.id in baselines for cell in group)) for group in grouped(cells)]


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
    schedule = Schedule(groups(cells), workers.count)
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
                    if done.withdrawn:
                        said(done)
                        continue
                    cell = left.pop(done.id)
                    if done.status == "ok" and done.seconds:  # none where another run had stored it
                        with lock:
                            schedule.pace.learn(kind_of(cell), predicted(cell), done.seconds)
                            schedule.pace.learn_preparing(group, done.prepare_seconds)
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

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(max(1, min(workers.count, len(cells))))]
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


EXECUTORS: dict[str, Execute] = {"inline": inline, "process": process, "ray": ray}
