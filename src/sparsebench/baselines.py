"""Which row of a grid each cell is compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sparsebench.errors import InputError
from sparsebench.identity import digest
from sparsebench.planned_cell import PlannedCell
from sparsebench.suite import DENSE, Grid, MethodEntry


@dataclass(frozen=True)
class _Row:
    """A cell with what the suite says of it.

    Attributes:
        cell: The cell.
        entry: The entry that it was made of.
        system: Its system, as the suite names it.
    """

    cell: PlannedCell
    entry: MethodEntry
    system: str

    @property
    def plain(self) -> bool:
        """Whether its entry names no knobs: a label holds none, so it is what the label says."""
        return not self.entry.knobs and not any(member.knobs for member in self.entry.stack)

    @property
    def what(self) -> str:
        """What makes it another row than one of the same label."""
        spec = self.cell.spec
        return digest([[member.plain() for member in spec.stack], spec.system.model_dump(mode="json")])


def paired(grid: Grid, made: list[tuple[PlannedCell, MethodEntry]]) -> Iterator[PlannedCell]:
    """Give every cell of a task the baseline of its system; a row of the baseline's label that is not it has one too.

    Raises:
        InputError: No row, or several, that a cell may be compared with.
    """
    rows = [_Row(cell, entry, entry.system or grid.system) for cell, entry in made]
    labelled: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        labelled[row.cell.placement.label].append(row)
    known: dict[tuple[str, str], dict[int, PlannedCell]] = {}
    for row in rows:
        wanted = row.entry.baseline or grid.baseline
        if wanted:
            key = (wanted, row.system)
            if key not in known:
                known[key] = _baselines(grid, row, wanted, labelled)
            _place(row.cell, known[key])
        yield row.cell


def _place(cell: PlannedCell, seeds: dict[int, PlannedCell]) -> None:
    """Say in a cell that it is a baseline, or which of the seeds of one it is compared with."""
    place = cell.placement
    if any(cell.id == other.id for other in seeds.values()):
        place.role = "baseline"
        return
    if place.role == "baseline":
        place.role = "comparator"  # dense, in a grid that compares with something else
    place.baseline = seeds.get(cell.spec.seed, next(iter(seeds.values()))).id


def _baselines(grid: Grid, row: _Row, wanted: str, labelled: dict[str, list[_Row]]) -> dict[int, PlannedCell]:
    """The cells that a row may be paired with, by seed: those whose system is most like its own."""
    ranked = [(_distance(grid, row, other, wanted), other) for other in labelled.get(wanted, ())]
    near = min((distance for distance, _ in ranked if distance is not None), default=None)
    if near is None:
        system = row.cell.spec.system.ref
        labels = sorted({f"{name} on {o.cell.spec.system.ref}" for name, others in labelled.items() for o in others})
        raise InputError(
            f"grid {grid.name}: no row {wanted!r} on {system} to compare with", f"rows: {'; '.join(labels)}"
        )
    found = [other for distance, other in ranked if distance == near]
    if len({other.what for other in found}) > 1:
        found = [other for other in found if other.plain]
    if len({other.what for other in found}) != 1:
        raise InputError(
            f"grid {grid.name}: several rows are called {wanted!r}",
            "which of them is the baseline? The one that names no knobs would be, on the row's system or the grid's",
        )
    seeds: dict[int, PlannedCell] = {}
    for other in found:
        seeds.setdefault(other.cell.spec.seed, other.cell)
    return seeds


def _distance(grid: Grid, row: _Row, other: _Row, wanted: str) -> int | None:
    """How far a baseline's system is from a row's own, from 0; None where the two must not be compared."""
    ours, theirs = row.cell.spec.system, other.cell.spec.system
    one_model = (ours.ref, ours.fingerprint) == (theirs.ref, theirs.fingerprint)
    nearer = (
        row.system == other.system,
        one_model and ours.dtype == theirs.dtype,
        one_model and other.system == grid.system,
        one_model,
        wanted != DENSE and other.system == grid.system,
        wanted != DENSE,
    )
    return nearer.index(True) if any(nearer) else None
