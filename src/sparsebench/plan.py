"""From a suite to cells: every reference resolved to hashes, every cell with its id, baseline and predicted cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsebench import adapters
from sparsebench.adapters.base import Sparsity, check_together
from sparsebench.baselines import paired
from sparsebench.budget import Budget
from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.planned_cell import PlannedCell, cell_of_stack
from sparsebench.records import SystemSpec
from sparsebench.suite import DENSE, Grid, Member, MethodEntry, Suite, SystemEntry
from sparsebench.targets import solve_targets

if TYPE_CHECKING:
    from sparsebench.tasks.base import BoundTask

PREDICTED_SHARE = 0.4
"""Share of the matrix-product peak that a forward pass reaches, for predicted times."""


OTHER_BATCH = 384
"""Tokens of a forward pass of noise rows that differ in nothing else."""
TIMED_TOKENS = 2 * 32 * 16
"""Tokens of the single queries that a retriever is timed with: at one thread and at all, 32 queries of about 16."""


@dataclass
class Plan:
    """All cells of a suite.

    Attributes:
        suite: The suite as it is run.
        cells: In the order of the suite.
        lock: Hashes that references were resolved to.
        tasks: Bound tasks, by (task, limit, system name).
    """

    suite: Suite
    cells: list[PlannedCell]
    lock: dict[str, Any]
    tasks: dict[tuple[str, int | None, str], BoundTask] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What is odd about the data of the tasks, each said once."""
        return list(dict.fromkeys(note for task in self.tasks.values() for note in task.notes))

    def shard(self, index: int, count: int) -> list[PlannedCell]:
        """Part `index` of `count` (from 1), by id: the same cells on every machine, baselines with their cells."""
        before = {cell.id: cell.placement.baseline for cell in self.cells}

        def part(identity: str) -> int:
            return int(_line(identity, before)[-1][:8], 16) % count

        return [cell for cell in self.cells if part(cell.id) == index - 1]

    def only(self, identities: Iterable[str]) -> list[PlannedCell]:
        """The cells with these ids, and the baselines that they are compared with.

        Raises:
            InputError: The plan has no such cell.
        """
        before = {cell.id: cell.placement.baseline for cell in self.cells}
        wanted: set[str] = set()
        for identity in identities:
            if identity not in before:
                raise InputError(
                    f"suite {self.suite.suite} has no cell {identity} here",
                    "an id holds hashes of model and data, the dtype and the limit: `sparsebench plan` lists those of "
                    "this machine; --device, --limit and --model change them",
                )
            wanted.update(_line(identity, before))
        return [cell for cell in self.cells if cell.id in wanted]


def _line(identity: str, before: Mapping[str, str | None]) -> list[str]:
    """A cell, its baseline, the baseline's and so on."""
    found = [identity]
    while (baseline := before.get(found[-1])) is not None and baseline not in found:
        found.append(baseline)
    return found


@dataclass(frozen=True)
class _ResolvedSystem:
    spec: SystemSpec
    entry: SystemEntry
    tokenizer: Any
    parameters: int


def plan(suite: Suite, limit: int | None = None, device: str = "cpu") -> Plan:
    """Resolve a suite's references and make its cells.

    Args:
        suite: The suite.
        limit: Samples of each task at most; replaces the suite's own limits where it is smaller.
        device: Where the cells will run; decides what dtype `auto` is.

    Raises:
        MissingError: A model or data set is not to be had.
        InputError: A reference, a task or a baseline is wrong.
    """
    systems = {name: _resolve(entry, device) for name, entry in suite.systems.items() if _used(suite, name)}
    suite, solved = solve_targets(suite, {name: s.spec.ref for name, s in systems.items()})
    tasks: dict[tuple[str, int | None, str], BoundTask] = {}
    calibrations: dict[tuple[str, str], dict[str, Any]] = {}
    cells: dict[str, PlannedCell] = {}
    for grid in suite.grids:
        for cell in _grid_cells(suite, grid, systems, tasks, calibrations, limit, device):
            _check_place(cells.setdefault(cell.id, cell), cell)
    _encode_once(cells.values(), systems.values())
    _check_margins(suite, tasks.values())
    lock = {
        "systems": {name: s.spec.model_dump(mode="json") for name, s in systems.items()},
        "tasks": _locked_tasks(tasks),
        "calibration": {f"{name} for {system}": facts for (name, system), facts in calibrations.items()},
        **({"targets": solved} if solved else {}),
    }
    return Plan(suite, list(cells.values()), lock, tasks)


def _check_place(first: PlannedCell, cell: PlannedCell) -> None:
    """Refuse a row of two grids that means something else in the second: it is stored once, with one place."""
    ours, theirs = (
        {
            "role": c.placement.role,
            "baseline": c.placement.baseline,
            "base_precision": c.base_precision,
            "batch_tokens": c.batch_tokens,
            "devices": c.devices,
        }
        for c in (first, cell)
    )
    if wrong := [name for name in ours if ours[name] != theirs[name]]:
        before, after = first.placement, cell.placement
        raise InputError(
            f"{after.label} on {cell.spec.task.id} is one cell of grid {before.grid} and of grid {after.grid}, with "
            f"another {' and '.join(wrong)} in each; the second would be left out",
            "put them into suites of their own, each with its results folder",
        )


def _encode_once(cells: Iterable[PlannedCell], systems: Iterable[_ResolvedSystem]) -> None:
    """Vectors of a collection are computed for the first row that needs them; the others encode timed queries alone."""
    parameters = {system.spec.fingerprint: system.parameters for system in systems if system.tokenizer is None}
    encoded: set[tuple[str | bool, ...]] = set()
    for cell in cells:
        system, task = cell.spec.system, cell.spec.task
        if system.fingerprint not in parameters or not cell.spec.stack:
            continue
        one_vector = getattr(adapters.get(cell.spec.stack[0].method), "one_vector", True)
        vectors = (system.fingerprint, system.dtype, task.id, task.data, one_vector)
        if vectors in encoded:
            cell.flops = 2.0 * parameters[system.fingerprint] * TIMED_TOKENS
        encoded.add(vectors)


def _check_margins(suite: Suite, tasks: Iterable[BoundTask]) -> None:
    """A margin for a metric that its task has not would be left out silently."""
    metrics: dict[str, set[str]] = {}
    for bound in tasks:
        metrics.setdefault(bound.spec.id, set()).update(metric.name for metric in bound.metrics)
    known = set().union(*metrics.values())
    for task, margins in suite.conclude.margins.items():
        for name in set(margins) - {"*"} - (known if task == "*" else metrics.get(task, set())):
            wrong = UnknownNameError("metric", name, known if task == "*" else metrics.get(task, set()))
            raise InputError(f"suite {suite.suite}: conclude.margins.{task}: {wrong.message}", wrong.hint)


def _used(suite: Suite, name: str) -> bool:
    measures = any(request.of == name for request in suite.requests.values())
    return measures or any(name == g.system or any(m.system == name for m in g.methods) for g in suite.grids)


def _resolve(entry: SystemEntry, device: str) -> _ResolvedSystem:
    if entry.kind == "lexical":
        return _ResolvedSystem(SystemSpec(kind="lexical", ref="lexical"), entry, None, 0)
    from sparsebench.systems.loading import check_causal, count_parameters, load_tokenizer, model_files, resolve_dtype

    files = model_files(entry.model)
    if entry.kind == "causal-lm":
        check_causal(files)
        dtype = str(resolve_dtype(entry.dtype, device)).removeprefix("torch.")
        tokenizer = load_tokenizer(entry.model)
    else:
        dtype = "float32" if entry.dtype == "auto" else entry.dtype
        tokenizer = None
    spec = SystemSpec(kind=entry.kind, ref=files.ref, fingerprint=files.fingerprint, dtype=dtype)
    return _ResolvedSystem(spec, entry, tokenizer, count_parameters(files.folder))


def _grid_cells(
    suite: Suite,
    grid: Grid,
    systems: dict[str, _ResolvedSystem],
    tasks: dict[tuple[str, int | None, str], BoundTask],
    calibrations: dict[tuple[str, str], dict[str, Any]],
    limit: int | None,
    device: str,
) -> Iterator[PlannedCell]:
    methods = grid.rows
    family = _family(methods)
    for task in grid.tasks:
        wanted = min((x for x in (task.limit, limit) if x is not None), default=None)
        made: list[tuple[PlannedCell, MethodEntry]] = []
        for entry in methods:
            name = entry.system or grid.system
            system = systems[name]
            _check_kind(grid, task.task, system)
            bound = _bound(tasks, task.task, wanted, name, system, suite.seed)
            for stack in entry.stacks():
                _check_accepted(grid, stack, system)
                _check_together(grid, stack)
                for seed in entry.seeds:
                    calibration = _calibration(suite, grid, calibrations, name, system) if _calibrated(stack) else None
                    made.append(
                        (
                            _cell(
                                suite, grid, family, system, task.task, bound, entry, stack, seed, calibration, device
                            ),
                            entry,
                        )
                    )
        yield from paired(grid, made)


def _locked_tasks(tasks: dict[tuple[str, int | None, str], BoundTask]) -> dict[str, Any]:
    """What each task was resolved to; one that grids take at several sizes is there with each."""
    sizes = Counter((task, system) for task, _, system in tasks)
    return {
        f"{task} on {system}"
        + (f", {limit or 'all'} samples" if sizes[task, system] > 1 else ""): bound.spec.model_dump(mode="json")
        for (task, limit, system), bound in tasks.items()
    }


def _bound(
    tasks: dict[tuple[str, int | None, str], BoundTask],
    task: str,
    limit: int | None,
    name: str,
    system: _ResolvedSystem,
    seed: int,
) -> BoundTask:
    from sparsebench.tasks import registry

    key = (task, limit, name)
    if key not in tasks:
        same = next((b for (t, n, _), b in tasks.items() if (t, n) == key[:2] and system.tokenizer is None), None)
        try:
            tasks[key] = same or registry.bind(task, system.tokenizer, limit, seed)
        except MissingError as error:
            raise MissingError(f"task {task}: {error.message}", error.hint) from error
    return tasks[key]


def _check_kind(grid: Grid, task: str, system: _ResolvedSystem) -> None:
    from sparsebench.tasks import registry

    kind = "lm" if system.spec.kind == "causal-lm" else "retrieval"
    if registry.get(task).kind != kind:
        raise InputError(f"grid {grid.name}: task {task} does not run on a {system.spec.kind}")


def _check_accepted(grid: Grid, stack: list[Member], system: _ResolvedSystem) -> None:
    for member in stack:
        accepts = adapters.get(member.method).accepts
        if system.spec.kind not in accepts:
            raise InputError(
                f"grid {grid.name}: {member.method} does not run on a {system.spec.kind}",
                f"it takes a {' or '.join(accepts)}; give the row a `system:`",
            )


def _check_together(grid: Grid, stack: list[Member]) -> None:
    try:
        check_together([adapters.get(member.method).card for member in stack])
    except InputError as error:
        raise InputError(f"grid {grid.name}: {error.message}", error.hint) from None


def _family(methods: list[MethodEntry]) -> str:
    named = [m.method or m.stack[0].method for m in methods]
    families = Counter(adapters.get(name).card.family for name in named if name != DENSE)
    return families.most_common(1)[0][0] if families else DENSE


def _calibrated(stack: list[Member]) -> bool:
    return any(adapters.get(member.method).configure(member.knobs).reads_calibration() for member in stack)


def _calibration(
    suite: Suite,
    grid: Grid,
    known: dict[tuple[str, str], dict[str, Any]],
    name: str,
    system: _ResolvedSystem,
) -> dict[str, Any]:
    if grid.calibration is None:
        raise InputError(
            f"grid {grid.name} has a method that reads a calibration text, and names none",
            f"add `calibration:` with one of {', '.join(suite.calibration) or 'those you define'}",
        )
    from sparsebench.calibration_texts import calibration_for

    key = (grid.calibration, name)
    if key not in known:
        entry = suite.calibration[grid.calibration]
        made = calibration_for(system.tokenizer, entry.model_dump())
        known[key] = {**entry.model_dump(), "hash": made.hash, "tokens": made.tokens}
    return known[key]


def _cell(
    suite: Suite,
    grid: Grid,
    family: str,
    system: _ResolvedSystem,
    task: str,
    bound: BoundTask,
    entry: MethodEntry,
    stack: list[Member],
    seed: int,
    calibration: dict[str, Any] | None,
    device: str,
) -> PlannedCell:
    spec_system, batch = _changed(system, entry, device)
    members = [
        Sparsity(adapters.get(m.method).configure(m.knobs), Budget.from_dict(m.budget) if m.budget else None)
        for m in stack
    ]
    cell = cell_of_stack(spec_system, members, task, bound, calibration, batch, seed)
    cell.task_seed = suite.seed
    cell.base_precision, cell.devices = system.entry.base_precision, system.entry.devices
    cell.placement.suite, cell.placement.suite_version = suite.suite, suite.version
    cell.placement.grid = grid.name
    if not stack:
        cell.placement.family = family  # of the methods that it is there for
    if solved := [member.solved for member in stack if member.solved]:
        cell.placement.facts["target"] = solved[0]
    cell.flops = 2.0 * system.parameters * (bound.workload.prefill + bound.workload.decode)
    return cell


def _changed(system: _ResolvedSystem, entry: MethodEntry, device: str) -> tuple[SystemSpec, int | None]:
    change = entry.noise
    if change is None:
        return system.spec, system.entry.batch_tokens
    from sparsebench.systems.causal_lm import BATCH_TOKENS
    from sparsebench.systems.loading import resolve_dtype

    dtype, own = system.spec.dtype, system.entry.batch_tokens or BATCH_TOKENS.get(device.partition(":")[0])
    if change.dtype is not None:
        dtype = str(resolve_dtype(change.dtype, device)).removeprefix("torch.")
    batch = change.batch_tokens or system.entry.batch_tokens
    changed = [dtype] * (dtype != system.spec.dtype)
    if not changed and change.batch_tokens is None and system.entry.dtype == "auto":
        batch = OTHER_BATCH  # a suite for machines of several kinds, on one where the two dtypes are one
    changed += [f"batch {batch}"] * (batch not in (None, system.entry.batch_tokens, own))
    if not changed:
        raise InputError(
            f"the noise row of {system.spec.ref} runs as the dense one does, in {dtype}"
            + (f" at batch_tokens {batch}" if batch else ""),
            f"give it another dtype or batch_tokens, as in noise: {{batch_tokens: {OTHER_BATCH}}}",
        )
    return system.spec.model_copy(update={"dtype": dtype, "replica": f"A/A {', '.join(changed)}"}), batch
