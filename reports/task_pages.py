"""Pages of tasks: what is asked, of which data, what the baseline reaches, and every method's results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparsebench.reports import notation
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.views import Descriptions, FigureView, Pages, Row, fixed_columns, with_baselines

Page = tuple[str, str, dict[str, Any]]


def task_pages(
    rows: Sequence[Row],
    judged: Sequence[Judged],
    figures: Sequence[FigureView],
    pages: Pages,
    descriptions: Descriptions,
    most_rows: int,
) -> Iterator[Page]:
    """Path, template and context of each task's page and of their list."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        if row["task"]:
            by_task.setdefault(row["task"], []).append(row)
    cells: dict[str, list[Judged]] = {}
    for item in judged:
        cells.setdefault(notation.printable(item.cell.spec.task.id), []).append(item)
    lines = baseline_lines([row for row in rows if row["headline"]])
    yield "tasks/index.html", "tasks.html", {"tasks": [{**line, "file": _file(pages, line["name"])} for line in lines]}
    for task, found in sorted(by_task.items()):
        headline = with_baselines([r for r in found if r["headline"] or r["status"] == "failed"], [])
        yield (
            pages.task(task),
            "task.html",
            {
                "name": task,
                "description": descriptions.get(task, ""),
                "definitions": _definitions(cells.get(task, [])),
                "metrics": _with_versions(baseline_lines(found), cells.get(task, [])),
                "figures": [figure for figure in figures if figure.task == task],
                "rows": headline[:most_rows],
                "left_out": max(0, len(headline) - most_rows),
                "fixed": fixed_columns(headline),
                "caption": f"Headline metrics on {task}",
            },
        )


def _file(pages: Pages, task: str) -> str:
    return pages.task(task).split("/")[1]


def baseline_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the baseline reaches in each metric of each task and model, and whether that is a signal."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["metric"]:
            groups.setdefault((row["task"], row["metric"], row["model"]), []).append(row)
    has_baseline = {key[:2] for key, members in groups.items() if _baseline(members)}
    lines = []
    for (task, metric, model), members in sorted(groups.items()):
        base = _baseline(members)
        if base is None and (task, metric) in has_baseline:
            continue  # another system, compared with that baseline
        shown = base or members[0]
        silent = any(row["verdict"] == "no signal" for row in members)
        lines.append(
            {
                "name": task,
                "metric": metric,
                "model": model,
                "headline": shown["headline"],
                "higher_is_better": shown["higher_is_better"],
                "value": shown["dense"],
                "interval": base["value_interval"] if base else "",
                "chance": shown["chance"],
                "signal": "none" if silent else "yes" if shown["chance"] is not None else "no chance level",
                "n": shown["n"],
                "noise": max((row["noise"] for row in members if row["noise"] is not None), default=None),
                "margin": max((row["margin"] for row in members if row["margin"] is not None), default=None),
            }
        )
    return lines


def _baseline(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["role"] == "baseline"), None)


def _with_versions(lines: list[dict[str, Any]], cells: Sequence[Judged]) -> list[dict[str, Any]]:
    versions: dict[str, set[int]] = {}
    for item in cells:
        for judgement in item.judgements:
            versions.setdefault(notation.printable(judgement.metric.name), set()).add(judgement.metric.version)
    return [{**line, "version": ", ".join(map(str, sorted(versions.get(line["metric"], set()))))} for line in lines]


def _definitions(cells: Sequence[Judged]) -> list[dict[str, Any]]:
    """The definitions that cells of one task were evaluated with; more than one are never compared."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in cells:
        task = item.cell.spec.task
        key = (task.version, task.definition, task.data, task.limit or 0)
        if key not in found:
            found[key] = {**task.model_dump(), "cells": 0, "sources": item.cell.record.data}
        found[key]["cells"] += 1
    return [found[key] for key in sorted(found)]
