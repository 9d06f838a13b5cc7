"""Which row of a grid each cell is compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sparsebench.errors import InputError
from sparsebench.identity import digest
from sparsebench.planned_cell import PlannedCell
from sparsebench.suite import DENSE, Grid, MethodEntry


def paired(grid: Grid, made: list[tuple[PlannedCell, MethodEntry]]) -> Iterator[PlannedCell]:
    """Give every cell the baseline of its system and task."""
    labelled: dict[str, list[PlannedCell]] = defaultdict(list)
    for cell, _ in made:
        labelled[cell.placement.label].append(cell)
    known: dict[tuple[str, str, str], dict[int, PlannedCell]] = {}
    for cell, entry in made:
        wanted = entry.baseline or grid.baseline
        if not wanted or cell.placement.label == wanted:
            cell.placement.role = "baseline" if cell.placement.label == wanted else cell.placement.role
            yield cell
            continue
        key = (wanted, cell.spec.system.ref, cell.spec.system.fingerprint)
        if key not in known:
            known[key] = _baselines(grid, cell, wanted, labelled)
        seeds = known[key]
        cell.placement.baseline = seeds.get(cell.spec.seed, next(iter(seeds.values()))).id
        yield cell


def _baselines(
    grid: Grid, cell: PlannedCell, wanted: str, labelled: dict[str, list[PlannedCell]]
) -> dict[int, PlannedCell]:
    """The rows that a cell may be paired with, by seed."""
    found = [other for other in labelled.get(wanted, ()) if _same_system(cell, other, wanted)]
    if not found:
        labels = sorted({f"{name} on {other.spec.system.ref}" for name, rows in labelled.items() for other in rows})
        raise InputError(
            f"grid {grid.name}: no row {wanted!r} on {cell.spec.system.ref} to compare with",
            f"rows: {'; '.join(labels)}",
        )
    if len({digest([m.plain() for m in other.spec.stack]) for other in found}) > 1:
        raise InputError(f"grid {grid.name}: several rows are called {wanted!r}", "which of them is the baseline?")
    seeds: dict[int, PlannedCell] = {}
    for other in found:
        seeds.setdefault(other.spec.seed, other)
    return seeds


def _same_system(cell: PlannedCell, other: PlannedCell, wanted: str) -> bool:
    if wanted != DENSE:
        return True
    return (cell.spec.system.ref, cell.spec.system.fingerprint) == (
        other.spec.system.ref,
        other.spec.system.fingerprint,
    )
