"""Which run each cell is of, where a folder holds cells of several: other limits, other data, another model.

A folder keeps what was once computed. After a trial with `--limit 3`, or after a file of data or of a model was edited,
rows of one label stand side by side in it that must not be taken for each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from sparsebench.records import CellSpec
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.sources import Source
from sparsebench.store import StoredCell


def run_of(spec: CellSpec) -> tuple[str, ...]:
    """What cells of one task and one model have in common in one run, as it is printed."""
    task = spec.task
    return (
        f"limit {task.limit}" if task.limit is not None else "all samples",
        f"data {task.data[:8]}",
        f"task {task.version} {task.definition[:8]}",
        f"model {spec.system.fingerprint[:8]}",
    )


def whole_runs(cells: Iterable[tuple[Source, StoredCell]]) -> list[tuple[Source, StoredCell]]:
    """The cells without what trials left: of each row's task those of the largest limit, or of all samples."""
    groups: dict[tuple[object, ...], list[tuple[Source, StoredCell]]] = defaultdict(list)
    for source, cell in cells:
        spec, place = cell.spec, cell.record.placement
        row = (place.grid, place.label, place.config, spec.seed, spec.system.ref)
        groups[source.name, spec.task.id, *row].append((source, cell))

    def size(found: tuple[Source, StoredCell]) -> float:
        limit = found[1].spec.task.limit
        return math.inf if limit is None else limit

    return [found for group in groups.values() for found in group if size(found) == max(map(size, group))]


def without_trials(source: Source) -> Source:
    """A source as if trials had left nothing in it; see `whole_runs`."""
    cells = {cell.id: cell for _, cell in whole_runs((source, cell) for cell in source.cells.values())}
    return replace(source, cells=cells)


def runs_told_apart(judged: Iterable[Judged]) -> dict[tuple[str, str], str]:
    """What tells cells of several runs apart, `limit 3`, by source and id; none where a grid's task was run one way."""
    groups: dict[tuple[str, str, str, str], list[tuple[str, CellSpec]]] = defaultdict(list)
    for item in judged:
        spec = item.cell.spec
        groups[item.source.name, item.cell.record.placement.grid, spec.task.id, spec.system.ref].append(
            (item.cell.id, spec)
        )
    marks: dict[tuple[str, str], str] = {}
    for (source, *_), members in groups.items():
        runs = {run_of(spec) for _, spec in members}
        if len(runs) > 1:
            for identity, spec in members:
                marks[source, identity] = " ".join(_telling(run_of(spec), runs))
    return marks


def _telling(run: tuple[str, ...], runs: set[tuple[str, ...]]) -> list[str]:
    """The parts of a run by which it differs from others; data only among runs of one limit, which it follows from."""
    limit, data, *others = run
    told = [limit] if len({other[0] for other in runs}) > 1 else []
    told += [data] if len({other[1] for other in runs if other[0] == limit}) > 1 else []
    return told + [part for at, part in enumerate(others, start=2) if len({other[at] for other in runs}) > 1]
