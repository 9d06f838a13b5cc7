"""What the site's pages show of each row, figure and method: names of pages, small drawings, choices of rows."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from markupsafe import Markup, escape

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.registry import FAMILIES, get
from sparsebench.errors import SparseBenchError
from sparsebench.reports import figures, notation
from sparsebench.reports.processes import each
from sparsebench.reports.safe import SafeSparsity
from sparsebench.reports.tables import records
from sparsebench.reports.tradeoffs import Tradeoff, tradeoffs
from sparsebench.reports.verdicts import TESTED_ROLES

MANY_FIGURES = 12
"""Figures from which on they are drawn on all processors."""


class Row(dict[str, Any]):
    """A row whose columns templates may name as attributes, which is faster for them than looking up keys."""

    __getattr__ = dict.__getitem__


class Pages:
    """Where each page lies, relative to the site's root. Names from records reach file names through `slug` alone."""

    def __init__(self, cells: Iterable[tuple[str, str]]) -> None:
        sources: dict[str, list[str]] = {}
        for source, cell in cells:
            sources.setdefault(cell, []).append(source)
        self._cells = {
            (source, cell): f"cells/{cell}.html" if len(found) == 1 else f"cells/{cell}-{notation.slug(source)}.html"
            for cell, found in sources.items()
            for source in found
        }

    def cell(self, source: str, cell: str) -> str:
        """The page of a cell; empty for one that could not be read."""
        return self._cells.get((source, cell), "")

    def method(self, method: str) -> str:
        """The page of a method or stack."""
        return f"methods/{notation.slug(method)}.html"

    def task(self, task: str) -> str:
        """The page of a task."""
        return f"tasks/{notation.slug(task)}.html"


def row_views(table: pd.DataFrame, pages: Pages) -> list[Row]:
    """Rows of the tidy table with what templates need beside their columns."""
    return [_view(row, pages) for row in records(table)]


def _view(row: dict[str, Any], pages: Pages) -> Row:
    dense = row["dense"]
    places = notation.decimals(dense) if dense is not None else None
    sign = 1 if row["higher_is_better"] else -1
    return Row(
        row,
        page=pages.cell(row["source"], row["cell"]) or "index.html#failed",
        method_page=pages.method(row["method"]),
        task_page=pages.task(row["task"]),
        places=places,
        fine=None if places is None else places + 1,
        gain=None if row["delta"] is None else sign * row["delta"],
        interval=notation.interval(row["delta_low"], row["delta_high"], places),
        value_interval=_value_interval(row, places),
        forest=forest(row),
    )


def _value_interval(row: dict[str, Any], places: int | None) -> str:
    if row["ci_low"] is None or row["ci_high"] is None:
        return ""
    return f"{notation.number(row['ci_low'], places)} to {notation.number(row['ci_high'], places)}"


def forest(row: dict[str, Any]) -> Markup:
    """The interval of a difference as a small drawing: the baseline in the middle, better to the right."""
    low, high, delta, margin = row["delta_low"], row["delta_high"], row["delta"], row["margin"]
    if low is None or high is None or delta is None:
        return Markup("")
    sign = 1 if row["higher_is_better"] else -1
    reach = 4 * margin if margin else 1.25 * max(abs(low), abs(high), 1e-12)

    def x(value: float) -> str:
        return f"{60 + 58 * max(-1.0, min(1.0, sign * value / reach)):.3g}"

    dotted = f'<path class="margin" d="M{x(-sign * margin)} 2v12"/>' if margin else ""
    verdict = row["verdict"].replace(" ", "-") if row["verdict"] in notation.VERDICTS else ""
    ends = sorted((x(low), x(high)), key=float)
    return Markup(  # numbers and a fixed set of names only
        f'<svg class="forest {verdict}" viewBox="0 0 120 16" aria-hidden="true"><path d="M60 0v16"/>{dotted}'
        f'<path class="range" d="M{ends[0]} 8H{ends[1]}"/><circle cx="{x(delta)}" cy="8" r="3"/></svg>'
    )


def family_order(families: Iterable[str]) -> list[str]:
    """The families of the benchmark in its order, then any others."""
    return sorted(set(families), key=lambda f: (FAMILIES.index(f) if f in FAMILIES else len(FAMILIES), f))


def with_baselines(rows: Sequence[Row], everything: Sequence[Row]) -> list[Row]:
    """Rows together with the baselines that they are compared with, in the order of a leaderboard."""
    wanted, have = {row["baseline"] for row in rows}, {(row["source"], row["cell"]) for row in rows}
    shared = [r for r in everything if r["cell"] in wanted and (r["source"], r["cell"]) not in have]
    return sorted([*rows, *shared], key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    rank = {"baseline": 0, "noise": 1}.get(row["role"], 2)
    failed = row["status"] == "failed"
    return (
        row["task"],
        row["model"],
        failed,
        row["metric"],
        rank,
        row["method"],
        row["config"],
        row["sparsity"] or 0,
        row["seed"],
    )


def fixed_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Columns that are left out because every row has the same in them."""
    return ("model",) if len({row["model"] for row in rows}) <= 1 else ()


@dataclass(frozen=True)
class VerdictCounts:
    """Verdicts by family."""

    names: list[str]
    lines: list[dict[str, Any]]


def verdict_counts(rows: Sequence[Row], page_of: Callable[[str], str]) -> VerdictCounts:
    """How many headline rows of methods and comparators got which verdict."""
    tested = [row for row in rows if row["role"] in TESTED_ROLES or not row["role"]]
    names = [name for name in notation.VERDICTS if any(row["verdict"] == name for row in tested)]
    lines = []
    for family in family_order(row["family"] for row in tested if row["family"]):
        found = [row["verdict"] for row in tested if row["family"] == family]
        counts = [(name, found.count(name)) for name in names]
        lines.append({"family": family, "page": page_of(family), "counts": counts})
    return VerdictCounts(names, lines)


@dataclass(frozen=True)
class SafeTable:
    """Largest safe sparsities: a line a method, a column a task and metric."""

    columns: list[tuple[dict[str, str], str]]
    lines: list[dict[str, Any]]
    left_out: int = 0


def safe_table(safe: Sequence[SafeSparsity], pages: Pages, most: int = 60, fullest: bool = False) -> SafeTable:
    """Lay out the largest safe sparsities; with `fullest` of each configuration the lines with most tasks alone."""
    # What leaves nothing out has no level to ask about.
    safe = [s for s in safe if s.levels > 1 or 0 not in (s.largest, s.first_failure)]
    columns = sorted(
        {(s.row["task"], s.row["metric"]) for s in safe}, key=lambda column: [notation.by_number(x) for x in column]
    )
    told_apart = _told_apart(safe)
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for s in safe:
        varying = told_apart[s.row["method"], s.row["config"]]
        told = [notation.model_name(s.row[k]) if k == "model" else s.row[k] for k in varying]
        detail = " ".join(part for part in dict.fromkeys((s.row["config"], *told)) if part)
        order = family_order([*FAMILIES, s.row["family"]]).index(s.row["family"])
        place = (f"{order:03}", s.row["method"], detail)
        line = lines.setdefault(
            place,
            {
                "method": s.row["method"],
                "page": pages.method(s.row["method"]),
                "detail": detail,
                "series": (s.row["method"], s.row["config"]),
                "entries": [None] * len(columns),
            },
        )
        line["entries"][columns.index((s.row["task"], s.row["metric"]))] = s
    ordered = [lines[key] for key in sorted(lines)]
    if fullest:
        tasks: dict[tuple[str, str], int] = {}
        for line in ordered:
            tasks[line["series"]] = max(tasks.get(line["series"], 0), _filled(line))
        ordered = [line for line in ordered if _filled(line) == tasks[line["series"]]]
    named = [({"name": task, "page": pages.task(task)}, metric) for task, metric in columns]
    return SafeTable(named, ordered[:most], len(lines) - len(ordered[:most]))


def _filled(line: Mapping[str, Any]) -> int:
    return sum(entry is not None for entry in line["entries"])


def _told_apart(safe: Sequence[SafeSparsity]) -> dict[tuple[str, str], list[str]]:
    """For each method and configuration, what tells several results on one task and metric apart."""
    seen: dict[tuple[str, str], dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for s in safe:
        tasks = seen.setdefault((s.row["method"], s.row["config"]), {})
        tasks.setdefault((s.row["task"], s.row["metric"]), []).append(s.row)
    return {
        series: [
            key
            for key in ("model", "dtype", "mode", "protocol", "suite", "grid", "source")
            if any(len({row[key] for row in rows}) > 1 for rows in tasks.values())
        ]
        for series, tasks in seen.items()
    }


@dataclass(frozen=True)
class FigureView:
    """A figure on a page."""

    task: str
    rows: int
    kinds: int
    svg: Markup
    text: str
    file: str
    label: str
    caption: str


def figure_views(table: pd.DataFrame) -> list[FigureView]:
    """All figures of a table, drawn."""
    style = figures.styles(table)
    found = tradeoffs(table)
    return each(lambda tradeoff: _figure_view(tradeoff, style), found, worth=len(found) > MANY_FIGURES)


def _figure_view(tradeoff: Tradeoff, style: dict[tuple[str, str], figures.Style]) -> FigureView:
    text = figures.svg(figures.draw(tradeoff, style), tradeoff.name)
    label = f"{tradeoff.metric} of {tradeoff.task} against sparsity and FLOPs"
    many = len(tradeoff.rows) > figures.MOST_BARS
    bars = (
        "There are too many points for intervals."
        if many
        else ("Bars are intervals of the paired difference from the baseline.")
    )
    caption = (
        f"{tradeoff.metric} of {tradeoff.task} on {notation.model_name(tradeoff.model)}, sparser to the right. "
        f"The line is the baseline, the band the declared margin. {bars} The numbers are in the task's table."
    )
    svg = Markup(figures.inline(text, str(escape(label)), tradeoff.name))  # matplotlib escapes the texts in it
    file = f"figures/{tradeoff.name}.svg"
    return FigureView(tradeoff.task, len(tradeoff.rows), len(tradeoff.kinds), svg, text, file, label, caption)


@dataclass(frozen=True)
class Knob:
    """A setting of a method."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class MethodView:
    """A method's card and knobs; its attributes are those of the card."""

    card: MethodCard
    knobs: list[Knob] = field(default_factory=list)

    @property
    def explained(self) -> bool:
        """Whether any knob says what it means."""
        return any(knob.meaning for knob in self.knobs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.card, name)


def installed_method(name: str) -> MethodView | None:
    """The card of an installed method; None where there is none, or its plugin does not load."""
    try:
        adapter = get(name)
    except (SparseBenchError, ImportError):
        return None
    knobs = [
        Knob(key, _type_name(info.annotation), _default(info), " ".join((info.description or "").split()))
        for key, info in adapter.model_fields.items()
    ]
    return MethodView(adapter.card, knobs)


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is not None and arguments and not isinstance(origin, type):
        return " | ".join(_type_name(a) for a in arguments)
    return str(getattr(annotation, "__name__", annotation)) if origin is None else str(annotation)


def _default(info: Any) -> str:
    return "required" if info.is_required() else str(info.get_default(call_default_factory=True))


Cards = Callable[[str], MethodView | None]
Descriptions = Mapping[str, str]


def math_safe(value: float | None) -> str:
    """A number for sorting: empty where it is not known."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.6g}" if math.isfinite(value) else ("1e999" if value > 0 else "-1e999")
