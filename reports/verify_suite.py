"""Whether a results folder holds what its suite plans, and ran what the suite's lock resolved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sparsebench.errors import IntegrityError, SparseBenchError
from sparsebench.planned_cell import seeds_of
from sparsebench.records import CellSpec, MemberSpec
from sparsebench.reports.rules import conclusions
from sparsebench.reports.sources import Source
from sparsebench.reports.verify_record import Found
from sparsebench.suite import Member, Suite
from sparsebench.suite_source import load_suite, names

SHOWN = 4
FIXED = ("id", "version", "definition")
"""Fields of a task that are the same whatever the limit."""
RESOLVED = (*FIXED, "limit", "data")
"""Fields of a task that a lock resolves."""


def suite_findings(source: Source) -> Iterator[Found]:
    """What can be said of a folder's completeness."""
    stored = source.suite.get("suite")
    if not source.suite:
        yield "cannot check", "suite", "no suite.json: margins and completeness are not known"
        return
    try:
        conclusions(source)
    except IntegrityError as error:
        yield "error", "suite", error.message  # no report can be made by them
    if not isinstance(stored, dict) or "grids" not in stored:
        yield "cannot check", "suite", "suite.json names no grids: completeness is not known"
        return
    try:
        suite = Suite.model_validate(stored)
        planned, noise = _planned(suite, source.suite)
    except (ValidationError, SparseBenchError, ImportError) as error:
        first = str(error).splitlines()[0]
        yield (
            "cannot check",
            "suite",
            f"suite.json is no suite that this version knows ({first}): completeness is not known",
        )
        return
    yield from _missing(planned, noise, source)
    yield from _locked(source)
    yield from _published(suite)


@dataclass(frozen=True)
class _Planned:
    """One cell that a suite plans; knobs are those that the suite names."""

    ref: str
    stack: tuple[Member, ...]
    task: str
    seed: int
    name: str

    def is_cell(self, spec: CellSpec) -> bool:
        """Whether that is it. A knob that the suite leaves out may have got its default from any version."""
        return (
            (self.ref, self.task, self.seed) == (spec.system.ref, spec.task.id, spec.seed)
            and not spec.system.replica
            and len(self.stack) == len(spec.stack)
            and all(_is_member(ours, theirs) for ours, theirs in zip(self.stack, spec.stack, strict=True))
        )


def _is_member(planned: Member, stored: MemberSpec) -> bool:
    budget = planned.sparsity().budget
    return (planned.method, budget.to_dict() if budget else None) == (stored.method, stored.budget) and all(
        _agrees(value, stored.knobs.get(name)) for name, value in planned.knobs.items() if name != "seed"
    )


def _agrees(planned: Any, stored: Any) -> bool:
    """Whether a stored knob is the planned one. A nested one has more: defaults, and a reference made definite."""
    if isinstance(planned, dict) and isinstance(stored, dict):
        return all(name == "model" or _agrees(value, stored.get(name)) for name, value in planned.items())
    return bool(planned == stored)


def _resolved(suite: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """What the lock in a `suite.json` resolved of a kind, by name; whatever is of another form is left out."""
    lock = suite.get("lock")
    entries = lock.get(kind) if isinstance(lock, dict) else None
    return {name: e for name, e in entries.items() if isinstance(e, dict)} if isinstance(entries, dict) else {}


def _planned(suite: Suite, stored: dict[str, Any]) -> tuple[list[_Planned], int]:
    """Every cell that a suite plans, and how many A/A rows."""
    systems = _resolved(stored, "systems")
    # A suite may name a task by its file; the lock has its id.
    ids = {name.rpartition(" on ")[0]: str(task.get("id")) for name, task in _resolved(stored, "tasks").items()}
    cells, noise = [], set()
    for grid in suite.grids:
        for task in (ids.get(entry.task, entry.task) for entry in grid.tasks):
            for entry in grid.rows:
                ref = str((systems.get(entry.system or grid.system) or {}).get("ref") or "")
                if entry.noise is not None:
                    noise.add((ref, task, entry.noise.dtype, entry.noise.batch_tokens))
                    continue
                for stack, label in zip(entry.stacks(), entry.labels(), strict=True):
                    for seed in entry.seeds:
                        name = f"{label} on {task}" + (f", seed {seed}" if seed else "")
                        own = seeds_of([member.sparsity().adapter for member in stack], seed)
                        first = next((found for found in own if found is not None), seed)
                        cells.append(_Planned(ref, tuple(stack), task, first, name))
    return cells, len(noise)


def _missing(planned: list[_Planned], noise: int, source: Source) -> Iterator[Found]:
    """Cells that are planned and not there; damaged ones have findings of their own."""
    tasks = _locked_tasks(source)
    specs = [cell.spec for cell in source.cells.values() if not _of_other_limit(cell.spec, tasks)]
    lacking = [cell.name for cell in planned if not any(cell.is_cell(spec) for spec in specs)]
    there = sum(bool(spec.system.replica) for spec in specs)
    lacking += ["an A/A row"] * max(0, noise - there)
    lacking = list(dict.fromkeys(lacking)) if len(set(lacking)) > len(source.broken) else []
    if lacking:
        named = ", ".join(lacking[:SHOWN]) + (f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else "")
        yield "error", "complete", f"planned by its suite and missing: {named}"
    extra = sum(not spec.system.replica and not any(cell.is_cell(spec) for cell in planned) for spec in specs)
    if extra:
        yield "cannot check", "complete", f"{extra} cells are not planned by the suite as it is stored"


def _locked_tasks(source: Source) -> dict[str, list[dict[str, Any]]]:
    """What the lock resolved of each task, by id: one entry for each limit and system."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for locked in _resolved(source.suite, "tasks").values():
        tasks.setdefault(str(locked.get("id")), []).append(locked)
    return tasks


def _of_other_limit(spec: CellSpec, tasks: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether a cell is of a locked task, but was left by a run with another limit."""
    ran = spec.task.model_dump()
    known = [task for task in tasks.get(spec.task.id, []) if all(ran[key] == task.get(key) for key in FIXED)]
    return bool(known) and all(ran["limit"] != task.get("limit") for task in known)


def _locked(source: Source) -> Iterator[Found]:
    """Tasks, systems and calibration texts of the cells are those of the lock."""
    tasks = _locked_tasks(source)
    prints = {(str(s.get("ref")), str(s.get("fingerprint"))) for s in _resolved(source.suite, "systems").values()}
    texts = {str(c.get("hash")) for c in _resolved(source.suite, "calibration").values()}
    other_limit = 0
    for cell in source.cells.values():
        spec = cell.spec
        ran = spec.task.model_dump()
        if _of_other_limit(spec, tasks):
            other_limit += 1
        elif tasks and not any(
            all(ran[key] == task.get(key) for key in RESOLVED) for task in tasks.get(spec.task.id, [])
        ):
            yield "error", "lock", f"cell {cell.id}: its task or data is not the one that the lock resolved"
        if prints and (spec.system.ref, spec.system.fingerprint) not in prints:
            yield "error", "lock", f"cell {cell.id}: its model is not the one that the lock resolved"
        if spec.calibration and texts and str(spec.calibration.get("hash")) not in texts:
            yield "error", "lock", f"cell {cell.id}: its calibration text is not the one that the lock resolved"
    if other_limit:
        yield (
            "cannot check",
            "lock",
            f"{other_limit} cells of another limit than the suite was last run with: their data",
        )


def _published(suite: Suite) -> Iterator[Found]:
    """A suite of the package concludes by the rules that it was published with."""
    known = load_suite(suite.suite) if suite.suite in names() else None
    if known is None or known.version != suite.version:
        yield "cannot check", "suite", "its margins: no suite of this name and version is published"
    elif known.conclude != suite.conclude:
        yield (
            "error",
            "suite",
            f"suite {suite.suite} {suite.version} is stored with other margins or levels than it has",
        )
