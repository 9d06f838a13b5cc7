"""Suites from YAML: found by name or path, and checked with file, line and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsebench import adapters
from sparsebench.budget import Budget
from sparsebench.calibration_texts import SOURCES
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.suite import DENSE, Grid, Suite, check_budget
from sparsebench.tasks import registry
from sparsebench.yaml_source import Place, YamlSource, parse_yaml, read_yaml, validate


def names() -> list[str]:
    """Suites that come with the package."""
    folder = files("sparsebench.suites")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or from a `.yaml` file; the name of a finding is that of the suite that it rests on.

    Raises:
        InputError: No such suite, or one that is wrong; the message has file, line and key.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return from_source(read_yaml(Path(name)))
    if name not in names():
        from sparsebench.findings import definition

        if name in definition.names():
            return definition.load(name).suite
        raise UnknownNameError("suite", name, names())
    text = files("sparsebench.suites").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return from_source(parse_yaml(text, f"{name}.yaml"))


def from_source(source: YamlSource) -> Suite:
    """Validate a parsed suite, references between its parts included.

    Raises:
        InputError: It is wrong; the message has file, line and key.
    """
    if not isinstance(source.data, dict):
        raise source.error((), "a suite is a mapping of keys")
    _check_methods(source)
    suite = validate(Suite, source)
    for name, calibration in suite.calibration.items():
        _known(source, ("calibration", name, "data"), "calibration text", calibration.data, SOURCES)
    names = [grid.name for grid in suite.grids]
    for g, grid in enumerate(suite.grids):
        if grid.name in names[:g]:
            raise source.error(("grids", g, "name"), f"there are two grids {grid.name!r}")
        _check_grid(source, suite, grid, ("grids", g))
    asked = {entry.task for grid in suite.grids for entry in grid.tasks}
    for task in suite.conclude.margins:
        if not any(name.endswith((".yaml", ".yml")) for name in asked):
            _known(source, ("conclude", "margins", task), "task of this suite", task, {"*", *asked})
    return suite


def _check_grid(source: YamlSource, suite: Suite, grid: Grid, place: Place) -> None:
    _known(source, (*place, "system"), "system", grid.system, suite.systems)
    if grid.calibration is not None:
        _known(source, (*place, "calibration"), "calibration", grid.calibration, suite.calibration)
    for t, entry in enumerate(grid.tasks):
        elsewhere = entry.task.startswith(registry.LM_EVAL) or entry.task.endswith((".yaml", ".yml"))
        if not elsewhere and registry.parted(entry.task) is None:
            _known(source, (*place, "tasks", t), "task", entry.task, registry.names())
    rows = {DENSE, *(label for entry in grid.methods if entry.noise is None for label in entry.labels())}
    if grid.baseline:
        _known(source, (*place, "baseline"), "row", grid.baseline, rows)
    for m, method in enumerate(grid.methods):
        if method.system:
            _known(source, (*place, "methods", m, "system"), "system", method.system, suite.systems)
        if method.baseline:
            _known(source, (*place, "methods", m, "baseline"), "row", method.baseline, rows)
        if method.has_target() or method.request:
            _check_request(source, suite, method.request or grid.request, (*place, "methods", m))
    if grid.request:
        _check_request(source, suite, grid.request, (*place, "request"))


def _check_request(source: YamlSource, suite: Suite, name: str, place: Place) -> None:
    if not name:
        example = f"request: {next(iter(suite.requests), 'NAME')}, one of `requests`"
        raise source.error(place, "a target is a share of what a request costs: name it", example)
    _known(source, place, "request", name, suite.requests)
    if suite.requests[name].of:
        _known(source, ("requests", name, "of"), "system", suite.requests[name].of, suite.systems)


def _known(source: YamlSource, place: Place, kind: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        wrong = UnknownNameError(kind, name, valid)
        raise source.error(place, wrong.message, wrong.hint)


def _check_methods(source: YamlSource) -> None:
    """Method names, knobs and budgets first: their own messages are better than a validator's."""
    for place, entry in _method_places(source.data):
        given = {"method": entry} if isinstance(entry, str) else entry
        method, knobs = given.get("method"), given.get("knobs") or {}
        if not isinstance(method, str) or method in ("", DENSE) or not isinstance(knobs, dict):
            continue
        known = method in adapters.ids()
        try:
            if not known:
                raise UnknownNameError("adapter", method, [DENSE, *adapters.ids()])
            adapter = adapters.get(method).configure(knobs)
        except InputError as error:
            within = () if isinstance(entry, str) else ("knobs",) if known else ("method",)
            raise source.error((*place, *within), error.message, error.hint) from None
        key = "budgets" if "budgets" in given else "budget"
        budgets = given.get(key) or {}
        each = [
            (kind, value)
            for kind, values in (budgets.items() if isinstance(budgets, dict) else ())
            for value in (values if isinstance(values, list) else [values])
        ]
        for kind, value in each or [(None, None)]:
            where = place if kind is None else (*place, key, kind)
            try:
                check_budget(adapter, None if kind is None else Budget(kind, value))
            except InputError as error:
                raise source.error(where, error.message, error.hint) from None


def _method_places(data: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    grids = data.get("grids")
    for g, grid in enumerate(grids if isinstance(grids, list) else []):
        methods = grid.get("methods") if isinstance(grid, dict) else None
        for m, entry in enumerate(methods if isinstance(methods, list) else []):
            place: Place = ("grids", g, "methods", m)
            if isinstance(entry, str):
                yield place, entry
            elif isinstance(entry, dict):
                if "method" in entry:
                    yield place, entry
                members = entry.get("stack")
                for k, member in enumerate(members if isinstance(members, list) else []):
                    if isinstance(member, dict):
                        yield (*place, "stack", k), member
