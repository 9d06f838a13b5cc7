"""Running cells: a model loads once, a method is prepared once for all budgets, a stack attached once for all tasks."""

from __future__ import annotations

import gc
import importlib
import json
import math
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import adapters, environment
from sparsebench.adapters.base import Prepared, Sparsity, attached
from sparsebench.budget import Budget
from sparsebench.errors import IntegrityError, NotRestoredError, SparseBenchError, StorageError
from sparsebench.records import CellRecord, CellSpec, Environment, MetricValue, Outcome, SystemSpec
from sparsebench.redaction import redacted_text
from sparsebench.store import Store
from sparsebench.systems import memory

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.planned_cell import PlannedCell
    from sparsebench.systems.base import System
    from sparsebench.systems.imprint import Imprint
    from sparsebench.tasks.base import BoundTask, TaskResult


LIBRARY = re.compile(r"[/\\](torch|transformers|numpy|scipy|pandas|lm_eval)[/\\]")
"""Paths of code that only passes on what a method gave it."""
PATIENCE = 0.5
"""Seconds between two looks at cells that another run has in hand."""


@dataclass(frozen=True)
class CellDone:
    """What the caller hears of a finished cell."""

    id: str
    label: str
    task: str
    status: str
    seconds: float
    flops: float
    error: str | None = None
    prepare_seconds: float = 0.0
    """What preparing its methods has taken, for this cell or one before it."""
    withdrawn: bool = False
    """Whether it was said to be done before, and is taken back: its method did not give the system back as it was."""


OnDone = Callable[[CellDone], None]


@dataclass
class Session:
    """What stays loaded between cells: one system at a time, its tasks and prepared methods.

    Attributes:
        device: Where models run.
        executor: Name for the record.
        command: The command line, for the record.
        tasks: Tasks already bound, by (task as it was asked for, limit, system reference).
        prepared: States of the methods at hand, for all of their budgets.
        methods: Whose states those are.
        imprint: What the system was when it came, once a method is to be attached.
        copies: Weights of a system that was in memory already, to be put back where a method leaves others.
        broken: Why such a system can no longer be used; empty where it can.
    """

    device: str = "cpu"
    executor: str = "inline"
    command: str = field(default_factory=environment.command)
    tasks: dict[tuple[str, int | None, str], BoundTask] = field(default_factory=dict)
    system: System | None = None
    key: tuple[str, str, str, int] | None = None
    prepared: dict[str, Prepared] = field(default_factory=dict)
    methods: str = ""
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    imprint: Imprint | None = None
    adopted: bool = False
    copies: dict[str, torch.Tensor] | None = None
    broken: str = ""

    def load(self, cell: PlannedCell) -> System:
        """The cell's system; the one before it goes first.

        Raises:
            NotRestoredError: It was in memory already, and a method has changed it for good.
        """
        if self.broken:
            raise NotRestoredError(f"the model in memory is no longer what it was: {self.broken}", "load it anew")
        wanted = cell.spec.system
        key = (wanted.kind, wanted.ref, wanted.dtype, cell.devices)
        if self.key != key or self.system is None:
            self.unload()
            memory.keep_freed_memory()
            self.system = load_system(*key[:3], self.device, cell.devices)
            self.key = key
            for library in ("pandas", "sparsebench.engine.lm"):  # else the first cell's time would hold it
                importlib.import_module(library)
        if self.system.fingerprint != wanted.fingerprint:
            raise IntegrityError(f"{wanted.ref} is not what was planned: its files changed meanwhile", "run it again")
        lm: Any = self.system
        if hasattr(lm, "batch_default"):
            lm.plan_batch(cell.batch_tokens)
            lm.base_precision = cell.base_precision or lm.base_precision
        return self.system

    def adopt(
        self, system: System, spec: SystemSpec, devices: int = 1, copies: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Take a system that is in memory already, on so many devices, with copies of its weights if there are some."""
        self.system, self.key = system, (spec.kind, spec.ref, spec.dtype, devices)
        self.adopted, self.copies = True, copies

    def known(self) -> Imprint | None:
        """The imprint of the system at hand, which nothing is attached to; taken once."""
        if self.imprint is None and self.system is not None:
            self.imprint = self.system.imprint()
        return self.imprint

    def discard(self, error: NotRestoredError) -> None:
        """Go on without what a method has left behind: the system is loaded anew, or its weights are put back."""
        if not self.adopted or self.system is None or self.imprint is None:
            self.unload()
            return
        from sparsebench.systems.imprint import put_back

        lm: Any = self.system
        put_back(lm.model, self.copies or {})
        self.prepared.clear()
        lm.memory.clear()
        if self.imprint.differences(lm.imprint()):
            self.broken = error.message

    def prepared_for(self, cell: PlannedCell) -> dict[str, Prepared]:
        """States that cells with the same methods left; those of other methods are dropped, since they may be large."""
        methods = json.dumps([_methods(cell), cell.spec.calibration, cell.spec.seed], sort_keys=True)
        if methods != self.methods:
            self.prepared.clear()
            self.methods = methods
        return self.prepared

    def unload(self) -> None:
        """Drop the system and all that depends on it."""
        self.system, self.key, self.imprint = None, None, None
        self.prepared.clear()
        self.calibrations.clear()
        gc.collect()
        memory.give_back()

    def task(self, cell: PlannedCell, system: System) -> BoundTask:
        """The cell's task, bound to the system's tokenizer."""
        from sparsebench.tasks import registry

        spec = cell.spec.task
        key = (cell.task, spec.limit, system.ref)
        if key not in self.tasks:
            self.tasks[key] = registry.bind(cell.task, getattr(system, "tokenizer", None), spec.limit, cell.task_seed)
        bound = self.tasks[key]
        if bound.spec != spec:
            raise IntegrityError(f"task {spec.id} is not what was planned: its data or definition changed meanwhile")
        return bound

    def calibration(self, cell: PlannedCell, system: Any) -> Calibration | None:
        """The cell's calibration text."""
        entry = cell.spec.calibration
        if entry is None:
            return None
        from sparsebench.calibration_texts import calibration_for

        key = json.dumps(entry, sort_keys=True)
        if key not in self.calibrations:
            self.calibrations[key] = calibration_for(system.tokenizer, entry)
        return self.calibrations[key]


def load_system(kind: str, ref: str, dtype: str, device: str, devices: int = 1) -> System:
    """A system from its specification; a language model is spread over so many GPUs."""
    if kind == "causal-lm":
        from sparsebench.systems.loading import load_causal_lm

        return load_causal_lm(ref, dtype, device, devices=devices)
    from sparsebench.systems.retrieval import load_retrieval_system

    return load_retrieval_system(kind, ref, dtype, device)


def run_cells(
    cells: Iterable[PlannedCell],
    store: Store,
    session: Session,
    on_done: OnDone | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run cells and store each as soon as it is finished; failures are stored too.

    Cells that another run has in hand are left to it, and looked at again when all others are done.

    Args:
        cells: Cells to run; those that the store holds already should be left out by the caller.
        store: Where results go.
        session: What stays loaded.
        on_done: Hears of each finished cell.
        stopped: Asked before each cell; once it says yes, no further cell is begun.

    Raises:
        StorageError: A result cannot be written; what is stored already stays.
    """
    said = on_done or (lambda done: None)
    left = list(cells)
    while left and not stopped():
        elsewhere = [cell for group in grouped(left) for cell in _run_group(group, store, session, said, stopped)]
        if len(elsewhere) == len(left):
            time.sleep(PATIENCE)
        left = elsewhere


def grouped(cells: Iterable[PlannedCell]) -> Iterator[list[PlannedCell]]:
    """Cells with the same system, stack and seed together; systems, and what leaves prefill alone, too; dense first."""
    ordered = sorted(cells, key=_group_key)
    for _, group in groupby(ordered, key=_group_key):
        yield list(group)


def _group_key(cell: PlannedCell) -> tuple[Any, ...]:
    spec = cell.spec
    stack = json.dumps([m.model_dump(mode="json") for m in spec.stack], sort_keys=True)
    methods = json.dumps(_methods(cell), sort_keys=True)
    system = (spec.system.kind, spec.system.ref, spec.system.dtype, cell.devices)
    calibration = json.dumps(spec.calibration, sort_keys=True)
    prefill = json.dumps(
        [m for m, s in zip(_methods(cell), stack_of(spec), strict=True) if s.adapter.acts_in_prefill()]
    )
    return (*system, len(spec.stack), prefill, methods, calibration, spec.seed, cell.batch_tokens or 0, stack)


def _methods(cell: PlannedCell) -> list[list[Any]]:
    return [[member.method, member.knobs] for member in cell.spec.stack]


def _run_group(
    group: list[PlannedCell], store: Store, session: Session, on_done: OnDone, stopped: Callable[[], bool]
) -> list[PlannedCell]:
    """Run cells that differ in their task only; returns those that another run has in hand."""
    if stopped():
        return []
    with store.leased([cell.id for cell in group]) as mine:
        todo = []
        for cell in group:
            if cell.id in mine and store.finished(cell.id):
                on_done(done_already(cell))
            elif cell.id in mine:
                todo.append(cell)
        if todo:
            _run_leased(todo, store, session, on_done, stopped)
    return [cell for cell in group if cell.id not in mine]


def done_already(cell: PlannedCell) -> CellDone:
    """What is said of a cell that another run or a worker that died has stored."""
    return CellDone(cell.id, cell.placement.label, cell.spec.task.id, "ok", 0.0, cell.flops)


def _run_leased(
    group: list[PlannedCell], store: Store, session: Session, on_done: OnDone, stopped: Callable[[], bool]
) -> None:
    finished: dict[str, CellDone] = {}
    first = group[0]
    try:
        system = session.load(first)
        stack = stack_of(first.spec)
        _check_code(first.spec)
        calibration = session.calibration(first, system)
        group = [cell for cell in group if _observed(cell, system, store, session, on_done)]
        if not group:
            return
        before = _weights(system)
        known = session.known() if stack else None
        with attached(system, stack, calibration, session.prepared_for(first), known) as (sparse, prepared):
            after = _weights(sparse) if stack else before
            for cell in group:
                if stopped():
                    return
                done = _run_cell(cell, sparse, stack, prepared, (before, after), store, session)
                finished[cell.id] = done
                on_done(done)
    except StorageError:
        raise
    except NotRestoredError as error:
        session.discard(error)
        for cell in group:
            if cell.id not in finished:
                on_done(store_failure(cell, error, store, session))
            elif finished[cell.id].status == "ok":
                store.withdraw(cell.id)
                on_done(replace(store_failure(cell, error, store, session), withdrawn=True))
    except Exception as error:
        if len(finished) == len(group) and not session.adopted:
            # Detaching failed: what is in memory may not be the model that it was.
            session.unload()
        for cell in group:
            if cell.id not in finished:
                on_done(store_failure(cell, error, store, session))


def _observed(cell: PlannedCell, system: System, store: Store, session: Session, on_done: OnDone) -> bool:
    """Let a task see the dense system; where it cannot, that cell alone has failed."""
    try:
        session.task(cell, system).observe(system)
    except Exception as error:
        on_done(store_failure(cell, error, store, session))
        return False
    return True


def stack_of(spec: CellSpec) -> list[Sparsity]:
    """The adapters of a cell; its seed goes to the knob `seed` of those that have one, and none of their own."""
    members = []
    for member in spec.stack:
        method = adapters.get(member.method)
        knobs = dict(member.knobs)
        if "seed" in method.model_fields:
            knobs.setdefault("seed", spec.seed)
        members.append(Sparsity(method.configure(knobs), Budget.from_dict(member.budget) if member.budget else None))
    return members


def _check_code(spec: CellSpec) -> None:
    """Refuse a method whose code is not the one that was planned: here, or on the machine of a worker."""
    for member in spec.stack:
        if (found := adapters.code_of(adapters.get(member.method))) != member.code:
            raise IntegrityError(
                f"{member.method} is of {found or 'this package'}, planned was {member.code or 'one of this package'}",
                "its code changed meanwhile, or is another here: run it again",
            )


def _run_cell(
    cell: PlannedCell,
    system: System,
    stack: list[Sparsity],
    prepared: list[Prepared],
    weights: tuple[Any, Any],
    store: Store,
    session: Session,
) -> CellDone:
    from sparsebench.realised import outcome_of

    started = datetime.now(UTC)
    start = time.perf_counter()
    try:
        bound = session.task(cell, system)
        result = _evaluate(bound, system)
        outcome = outcome_of(system, stack, weights, bound, result, time.perf_counter() - start)
        outcome.metrics = [
            MetricValue(metric=m, value=m.value(result.samples), n=int(result.samples[m.column].notna().sum()))
            for m in bound.metrics
        ]
        outcome.prepare_seconds = sum(p.seconds for p in prepared)
        outcome.prepare_tokens = sum(p.tokens for p in prepared)
        outcome.prepare_memory = max((p.peak_bytes for p in prepared if p.peak_bytes is not None), default=None)
        outcome.peak_memory = environment.peak_memory()
        outcome.facts = plain({**result.facts, **{k: v for p in prepared for k, v in p.facts.items()}})
        samples = result.samples
        if not all(fact.publish_text for fact in bound.data):
            samples = samples.drop(columns=["response", "target"], errors="ignore")
        described = plain(system.describe())
        record = CellRecord(cell=cell.id, placement=cell.placement, outcome=outcome, system=described, data=bound.data)
        store.write(cell.spec, record, _environment(cell, session, system, started), samples)
    except StorageError:
        raise
    except Exception as error:
        return store_failure(cell, error, store, session)
    seconds = time.perf_counter() - start
    return CellDone(
        cell.id,
        cell.placement.label,
        cell.spec.task.id,
        "ok",
        seconds,
        cell.flops,
        prepare_seconds=outcome.prepare_seconds or 0.0,
    )


def plain(value: Any) -> Any:
    """Facts as JSON has them: arrays as lists, and null for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _evaluate(bound: BoundTask, system: Any) -> TaskResult:
    """Evaluate; when memory runs out, halve the batch and begin anew. It stays so for the cells that follow at once."""
    while True:
        if hasattr(system, "counters"):
            system.counters.reset()
        try:
            return bound.evaluate(system)
        except (MemoryError, RuntimeError) as error:
            if not memory.ran_out(error) or getattr(system, "batch_tokens", 0) < 128:
                raise
        # Out of the except clause, so that the traceback's tensors are gone.
        system.halve_batch()
        memory.free()


def store_failure(cell: PlannedCell, error: Exception, store: Store, session: Session) -> CellDone:
    """Store that a cell failed, and why."""
    message = redacted_text(f"{type(error).__name__}: {error}{_where(error)}")
    retryable = memory.ran_out(error) or isinstance(error, ChildProcessError)
    outcome = Outcome(status="failed", error=message[:2000], retryable=retryable)
    record = CellRecord(cell=cell.id, placement=cell.placement, outcome=outcome)
    store.write(cell.spec, record, _environment(cell, session, None, datetime.now(UTC)), None)
    return CellDone(cell.id, cell.placement.label, cell.spec.task.id, "failed", 0.0, cell.flops, message)


def _where(error: Exception) -> str:
    """The line that raised it, for errors that nobody wrote for people."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SparseBenchError) or not frames:
        return ""
    # The last line that is not of a library: a method's author looks for their own.
    own = next((f for f in reversed(frames) if not LIBRARY.search(f.filename)), frames[-1])
    return f" ({'/'.join(Path(own.filename).parts[-2:])}, line {own.lineno}, in {own.name})"


def _weights(system: System) -> Any:
    if system.kind != "causal-lm":
        return None
    from sparsebench.systems.weights import weight_sparsity

    return weight_sparsity(system)  # type: ignore[arg-type]


def _environment(cell: PlannedCell, session: Session, system: Any, started: datetime) -> Environment:
    import platform

    import torch

    commit, dirty = environment.commit()
    return Environment(
        hardware=environment.hardware(session.device, cell.devices),
        device=session.device,
        threads=torch.get_num_threads(),
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=environment.packages() | dict(p for m in cell.spec.stack if (p := adapters.package_of(m.method))),
        commit=commit,
        dirty=dirty,
        command=session.command,
        executor=session.executor,
        batch_tokens=getattr(system, "batch_tokens", cell.batch_tokens),
        batch_replans=getattr(system, "halvings", 0),
        started=started.isoformat(timespec="seconds"),
    )
