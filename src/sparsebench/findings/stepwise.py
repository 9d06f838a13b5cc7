"""Suites of a phase-tolerance rule in steps: what is left out can have no part in the answer.

The dense model runs first, and sparse rows of forms that it does not read well enough are not run. A row's levels
follow one by one, from the least sparsity up, until its loss has reached the margin beyond doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsebench.findings import tolerance
from sparsebench.findings.definition import Finding
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Row, Tolerance
from sparsebench.suite import DENSE, Grid, MethodEntry, Suite
from sparsebench.tasks import registry

Levels = dict[tuple[str, str], int]
"""How many levels of a row, by its label, run on a form of a task."""


def run(finding: Finding, rule: Tolerance, finished: Callable[[Suite], Path]) -> Path:
    """Run what the rule needs of a finding's suite.

    Args:
        finding: The finding.
        rule: Its rule.
        finished: Runs a suite to its end and gives the folder of its results.

    Returns:
        The folder.
    """
    suite = finding.suite
    folder = finished(_cut(suite, rule, {}))
    forms = [form for each in rule.tasks.values() for form in each]
    dense = tolerance.dense_values(Results([folder], suite), forms)
    rows = [row for unit in rule.units for row in (unit.prefill, unit.decode)]
    open_rows = [(row, form) for form in forms if dense[form] >= rule.usable for row in rows]
    levels: Levels = {}
    while open_rows:
        for row, form in open_rows:
            levels[row.label, form] = levels.get((row.label, form), 0) + 1
        folder = finished(_cut(suite, rule, levels))
        results = Results([folder], suite)
        open_rows = [
            (row, form)
            for row, form in open_rows
            if levels[row.label, form] < _most(suite, row) and not tolerance.settled(rule, results, row, form)
        ]
    return folder


def _most(suite: Suite, row: Row) -> int:
    """Levels of a row in the suite."""
    return max((len(_sparsities(e)) for grid in suite.grids for e in grid.methods if _is(e, row)), default=0)


def _is(entry: MethodEntry, row: Row) -> bool:
    if entry.method != row.method:
        return False
    # Knobs that the suite leaves out have the method's defaults.
    known = next(entry.stacks())[0].sparsity().adapter.resolved().config
    return all(known.get(name) == value for name, value in row.knobs.items())


def _sparsities(entry: MethodEntry) -> list[float]:
    return sorted(float(value) for value in entry.budgets.get("sparsity", []))


def _cut(suite: Suite, rule: Tolerance, levels: Levels) -> Suite:
    """The suite with a grid for each form: its dense row, and so many levels of each of the rule's rows."""
    rows = [row for unit in rule.units for row in (unit.prefill, unit.decode)]
    grids: list[Grid] = []
    for grid in suite.grids:
        for task in grid.tasks:
            form = registry.get(task.task).id
            methods: list[MethodEntry] = []
            for entry in grid.rows:
                counts = [levels.get((row.label, form), 0) for row in rows if _is(entry, row)]
                if entry.method == DENSE:
                    methods.append(entry)
                elif chosen := _sparsities(entry)[: max(counts, default=0)]:
                    methods.append(entry.model_copy(update={"budgets": {"sparsity": chosen}}))
            if methods:
                name = f"{grid.name}, {form}"
                grids.append(grid.model_copy(update={"name": name, "tasks": [task], "methods": methods}))
    return suite.model_copy(update={"grids": grids})
