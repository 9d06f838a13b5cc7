"""Rows of results by method, budget and replicate, and their samples side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import CellsFailedError, InputError, IntegrityError
from sparsebench.findings.asked import setting, settings_of
from sparsebench.findings.rules import Measured, Row, Setting
from sparsebench.identity import canonical
from sparsebench.metrics import Metric
from sparsebench.reports.collect import budget_name
from sparsebench.reports.pairing import align, clusters_of, metric_mismatch, task_mismatch
from sparsebench.reports.sources import Samples, open_sources, read_samples
from sparsebench.store import AGAIN, StoredCell
from sparsebench.suite import DENSE, Suite

Array = npt.NDArray[np.float64]
Replicates = list[StoredCell]
"""Cells that differ only in seed or calibration text."""


@dataclass(frozen=True)
class Sheet:
    """Samples of several rows on one task, in one order; a row of several replicates is their mean.

    Attributes:
        metric: The metric.
        values: Numerators, `[samples, rows]`.
        weights: Denominators, `[samples, rows]`.
        clusters: Number of each sample's cluster, `[samples]`.
    """

    metric: Metric
    values: Array
    weights: Array
    clusters: npt.NDArray[np.int64]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.values)

    @property
    def means(self) -> Array:
        """Sum of numerators over sum of denominators, `[rows]`."""
        return np.asarray(self.values.sum(0) / self.weights.sum(0))


class Results:
    """The cells of some results folders, on one model.

    Where a folder holds a task at several sizes (a trial with `--limit` before the whole run), the largest counts. Of a
    row that they hold in several configurations, with several calibration texts or at more budgets than were asked for,
    those of the suite count.

    Args:
        folders: Results folders.
        suite: What was asked for.

    Raises:
        InputError: A folder that holds no results.
        IntegrityError: A cell that cannot be read.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], suite: Suite | None = None) -> None:
        sources = open_sources(folders)
        broken = [f"{source.name}: {problem}" for source in sources for problem in source.broken.values()]
        if broken:
            raise IntegrityError("not all cells can be read:\n  " + "\n  ".join(broken), AGAIN)
        # A cell that several folders hold is one cell.
        self.cells = list({cell.id: cell for source in sources for cell in source.cells.values()}.values())
        self._samples: dict[str, Samples] = {}
        asked = settings_of(suite) if suite is not None else set()
        self._asked = {cell.id for cell in self.cells if setting(cell.spec) in asked}
        self._used: dict[str, StoredCell] = {}

    @property
    def used(self) -> Replicates:
        """The cells that an answer was taken from."""
        return list(self._used.values())

    def dense(self, task: str) -> Replicates:
        """The dense model on a task."""
        return self._one(self._found(Row(method=DENSE), task), Row(method=DENSE), task, "")

    def at(self, row: Row, task: str, kind: str, value: float | int | str) -> Replicates:
        """A row at one budget.

        Raises:
            InputError: It is not among the results.
        """
        wanted = {kind: value}
        found = [cell for cell in self._found(row, task) if cell.spec.stack[-1].budget == wanted]
        return self._one(found, row, task, f" at {kind} {value}")

    def setting(self, setting: Setting, task: str) -> Replicates:
        """A row at its budget, or without one.

        Raises:
            InputError: It is not among the results.
        """
        found = [c for c in self._found(setting, task) if (c.spec.stack[-1].budget or {}) == setting.budget]
        return self._one(found, setting, task, "")

    def levels(self, row: Row, task: str) -> dict[float, Replicates]:
        """A row at each of its sparsities, from the least up.

        Raises:
            InputError: It is not among the results.
        """
        found = self._found(row, task)
        values = sorted({float(v) for c in found if (v := (c.spec.stack[-1].budget or {}).get("sparsity")) is not None})
        if not values:
            raise _absent(row, task, " at a sparsity", self.cells)
        return {value: self.at(row, task, "sparsity", value) for value in values}

    def rows(self, row: Row, task: str) -> Replicates:
        """All cells of a row, whatever their other knobs and budgets."""
        found = self._found(row, task)
        if not found:
            raise _absent(row, task, "", self.cells)
        return self._checked(found, row, task)

    def sheet(self, measured: Measured, rows: Sequence[Replicates]) -> Sheet:
        """The samples of some rows that all of them have a value for.

        Raises:
            InputError: They are not comparable, or nothing is left.
        """
        first = rows[0][0]
        metric = metric_of(first, measured)
        base = self._read(first)
        columns, weights = [], []
        for replicates in rows:
            each = [self._column(cell, measured, metric, first, base) for cell in replicates]
            columns.append(np.mean([numerator for numerator, _ in each], axis=0))
            weights.append(np.mean([weight for _, weight in each], axis=0))
        values, weight = np.stack(columns, axis=1), np.stack(weights, axis=1)
        present = ~np.isnan(values).any(axis=1)
        if not present.any():
            raise InputError(f"no sample of {measured.task} has a {metric.name} in all rows")
        numbers = clusters_of(base)
        clusters = np.arange(len(values), dtype=np.int64) if numbers is None else numbers
        return Sheet(metric, values[present], weight[present], np.unique(clusters[present], return_inverse=True)[1])

    def _column(
        self, cell: StoredCell, measured: Measured, metric: Metric, first: StoredCell, base: Samples
    ) -> tuple[Array, Array]:
        name = f"{cell.record.placement.label} on {measured.task}"
        samples = align(self._read(cell), base)
        other = task_mismatch(cell.spec.task, first.spec.task) or metric_mismatch(metric_of(cell, measured), metric)
        if other or isinstance(samples, str):
            raise InputError(f"{name}: {other or samples}")
        numerator, weight = samples.numerator(metric), samples.weight(metric)
        return numerator, np.ones_like(numerator) if weight is None else weight

    def _read(self, cell: StoredCell) -> Samples:
        if cell.id not in self._samples:
            self._samples[cell.id] = read_samples(cell)
        return self._samples[cell.id]

    def _found(self, row: Row, task: str) -> Replicates:
        found = [c for c in self.cells if c.spec.task.id == task and not c.spec.system.replica and _is(c, row)]
        return [cell for cell in found if cell.id in self._asked] or found

    def _checked(self, found: Replicates, row: Row, task: str) -> Replicates:
        chosen = _checked(found, row, task)
        self._used |= {cell.id: cell for cell in chosen}
        return chosen

    def _one(self, found: Replicates, row: Row, task: str, where: str) -> Replicates:
        """Replicates of one configuration.

        Raises:
            InputError: There are none, or they are several configurations.
        """
        if not found:
            raise _absent(row, task, where, self.cells)
        chosen = self._checked(found, row, task)
        settings = {canonical([[m.method, m.knobs] for m in cell.spec.stack]) for cell in chosen}
        if len(settings) > 1:
            raise InputError(
                f"{row.label} on {task}{where} is {len(settings)} configurations", "the rule should name their knobs"
            )
        return sorted(chosen, key=replicate)


def replicate(cell: StoredCell) -> tuple[str, int]:
    """What tells replicates apart: the calibration text's hash, and the seed."""
    return str((cell.spec.calibration or {}).get("hash", "")), cell.spec.seed


def metric_of(cell: StoredCell, measured: Measured) -> Metric:
    """The metric that is meant.

    Raises:
        InputError: The cell has none of that name.
    """
    if measured.column:
        return Metric(name=measured.column, column=measured.column)
    metrics = [found.metric for found in cell.record.outcome.metrics]
    wanted = [m for m in metrics if (m.name == measured.metric if measured.metric else m.headline)]
    if not wanted:
        raise InputError(f"{measured.task} has no metric {measured.metric!r}", f"it has {[m.name for m in metrics]}")
    return wanted[0]


def _is(cell: StoredCell, row: Row) -> bool:
    stack = cell.spec.stack
    if row.method == DENSE:
        return not stack
    if len(stack) != 1 or stack[0].method != row.method:
        return False
    return all(stack[0].knobs.get(name) == value for name, value in row.knobs.items())


def _checked(found: Replicates, row: Row, task: str) -> Replicates:
    """Cells of one model and one form of the task, none of them failed."""
    systems = {(c.spec.system.ref, c.spec.system.fingerprint, c.spec.system.dtype) for c in found}
    if len(systems) > 1:
        said = "; ".join(sorted(f"{ref} in {dtype}" for ref, _, dtype in systems))
        raise InputError(f"results of several models: {said}", "give folders of one model")
    most = max(_size(cell) for cell in found)
    chosen = [cell for cell in found if _size(cell) == most]
    failed = [cell for cell in chosen if cell.record.outcome.status != "ok"]
    if failed:
        raise CellsFailedError(
            f"{row.label} on {task} failed: {failed[0].record.outcome.error}", "the same command tries it again"
        )
    return chosen


def _size(cell: StoredCell) -> float:
    return math.inf if cell.spec.task.limit is None else cell.spec.task.limit


def _absent(row: Row, task: str, where: str, cells: Replicates) -> InputError:
    there = {f"{c.spec.stack[0].method} {budget_name(c.spec.stack)}" for c in cells if c.spec.stack}
    hint = "the suite of the finding has it: run it without --results"
    return InputError(f"{row.label}{where} on {task} is not among the results ({len(there)} other rows are)", hint)
