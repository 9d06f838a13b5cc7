"""Which cells a finding's suite asks for, where the results hold others beside them."""

from __future__ import annotations

from collections.abc import Sequence

from sparsebench.adapters.base import Sparsity
from sparsebench.identity import canonical
from sparsebench.records import CellSpec
from sparsebench.suite import CalibrationEntry, Suite


def settings_of(suite: Suite) -> set[str]:
    """What `setting` gives for each of a suite's cells, whatever their model, seed and limit."""
    found = set()
    for grid in suite.grids:
        text = suite.calibration[grid.calibration] if grid.calibration else None
        for entry in grid.rows:
            for stack in entry.stacks():
                members = [member.sparsity() for member in stack]
                read = text if any(m.adapter.reads_calibration() for m in members) else None
                found |= {_setting(task.task, [_member(m) for m in members], read) for task in grid.tasks}
    return found


def setting(spec: CellSpec) -> str:
    """Task, methods with their knobs and budgets, and calibration text of a cell."""
    known = CalibrationEntry.model_fields
    read = {name: value for name, value in (spec.calibration or {}).items() if name in known}
    members = [[member.method, member.knobs, member.budget] for member in spec.stack]
    return _setting(spec.task.id, members, CalibrationEntry.model_validate(read) if read else None)


def _member(member: Sparsity) -> list[object]:
    adapter = member.adapter.resolved()
    knobs = {name: value for name, value in adapter.config.items() if name != "seed"}
    return [adapter.card.id, knobs, member.budget.to_dict() if member.budget else None]


def _setting(task: str, members: Sequence[Sequence[object]], text: CalibrationEntry | None) -> str:
    return canonical([task, members, text.model_dump() if text else None])
