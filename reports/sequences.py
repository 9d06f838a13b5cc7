"""In which order a method's levels are asked whether they keep quality: from the least sparse to the sparsest.

The order comes from the budgets that the suite names, never from what was measured, so it is fixed before the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sparsebench.budget import Budget
from sparsebench.errors import SparseBenchError
from sparsebench.identity import canonical
from sparsebench.reports.comparisons import Judged, Judgement

LESS_IS_SPARSER = ("tokens", "coverage", "terms", "depth", "bits", "flops", "bytes")
"""Kinds of budgets of which a smaller value leaves out more."""

Levels = list[list[Judgement]]
"""The rows of each level."""


def sequences(members: Sequence[tuple[Judged, Judgement]]) -> list[Levels]:
    """Rows of a gate as sequences of levels, each level with the rows of all its seeds.

    A sequence is one metric of one configuration with one kind of budget: unstructured sparsity and patterns of n:m are
    two sequences, for neither is the other's next level.
    """
    found: dict[str, dict[tuple[float, ...], list[Judgement]]] = defaultdict(lambda: defaultdict(list))
    for item, judgement in members:
        found[_series(item, judgement)][level(item)].append(judgement)
    return [[rows[at] for at in sorted(rows)] for _, rows in sorted(found.items())]


def _series(item: Judged, judgement: Judgement) -> str:
    spec = item.cell.spec
    stack: list[Any] = [[m.method, m.version, m.knobs, sorted(m.budget or {})] for m in spec.stack]
    system = [spec.system.ref, spec.system.fingerprint, spec.system.dtype, spec.system.replica]
    # A source of its own: the same cell in two folders is no second seed.
    place = [item.source.name, spec.mode, spec.protocol, spec.calibration, item.cell.record.placement.grid]
    return canonical([judgement.metric.name, system, stack, place, "" if spec.stack else item.cell.id])


def level(item: Judged) -> tuple[float, ...]:
    """How sparse a cell was asked to be, larger for sparser; of a stack each member's."""
    return tuple(_sparser(member.budget) for member in item.cell.spec.stack)


def _sparser(budget: dict[str, float | int | str] | None) -> float:
    if not budget:
        return 0.0
    try:
        found = Budget.from_dict(budget)
    except SparseBenchError:
        return 0.0  # of a kind that this version does not know: all of its levels are one
    return -found.number if found.kind in LESS_IS_SPARSER else found.number
