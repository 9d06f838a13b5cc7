"""Published figures, and whether a run has them: OK, near or FAIL.

The figures stand in `published.yaml`. A figure is compared with a run of the same method, knobs and model on a
collection of that name; nothing else is claimed to be the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsebench.yaml_source import parse_yaml

SAME, NEAR = 0.0005, 0.01
"""Largest differences that count as the same figure, and as near it."""

_OTHER_NAMES = {"touche2020": "webis-touche2020", "dbpedia": "dbpedia-entity", "fiqa2018": "fiqa"}


@dataclass(frozen=True)
class Published:
    """What one system scored on some collections.

    Attributes:
        name: The system.
        source: Where the figures stand.
        method: The method's id.
        model: A part of the model's reference, in lower case; empty where there is no model.
        knobs: Knobs with the values that the figures were got with; all others are free.
        figures: `{collection: {metric: value}}`.
    """

    name: str
    source: str
    method: str
    model: str
    knobs: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """A measured value beside a published one.

    Attributes:
        name: The system that published it.
        source: Where it stands.
        collection: The collection.
        metric: The metric.
        measured: The run's value.
        published: The published value.
    """

    name: str
    source: str
    collection: str
    metric: str
    measured: float
    published: float

    @property
    def word(self) -> str:
        """`OK`, `near` or `FAIL`."""
        return word(self.measured, self.published)

    def __str__(self) -> str:
        """One line for a person."""
        figures = f"{self.measured:.4f}, published {self.published:.4f}"
        return f"{self.word:4} {self.collection} {self.metric}: {figures} ({self.name}, {self.source})"


def word(measured: float, published: float) -> str:
    """`OK` within 0.0005, `near` within 0.01, else `FAIL`."""
    difference = abs(measured - published)
    return "OK" if difference <= SAME else "near" if difference <= NEAR else "FAIL"


@cache
def published() -> tuple[Published, ...]:
    """All published figures."""
    text = files("sparsebench.retrieval").joinpath("published.yaml").read_text(encoding="utf-8")
    rows = parse_yaml(text, "published.yaml").data
    return tuple(Published(**{"model": "", "knobs": {}, **row}) for row in rows)


def beir_name(collection: str) -> str:
    """A collection's name in BEIR: without `beir-` before it, in lower case."""
    name = collection.lower().removeprefix("beir-").removeprefix("beir/")
    return _OTHER_NAMES.get(name, name)


def compare(
    collection: str, method: str, knobs: Mapping[str, Any], model: str, means: Mapping[str, float]
) -> list[Comparison]:
    """Every published figure that a run should have.

    Args:
        collection: The collection's name.
        method: The method's id; of a method at a budget there is no figure, so do not ask.
        knobs: Its knobs.
        model: The model's reference; empty where there is none.
        means: Measured values by metric.
    """
    name = beir_name(collection)
    return [
        Comparison(one.name, one.source, name, metric, means[metric], value)
        for one in published()
        if one.method == method and one.model in model.lower() and bool(one.model) == bool(model)
        if all(knobs.get(knob) == value for knob, value in one.knobs.items())
        for metric, value in one.figures.get(name, {}).items()
        if metric in means
    ]


def in_results(folder: Path) -> Iterator[Comparison]:
    """The comparisons of all cells of a results folder that can be read, in the order of their ids."""
    from sparsebench.reports.sources import open_sources

    for cell in open_sources([folder])[0].cells.values():
        if cell.spec.stack and cell.record.outcome.status == "ok":
            yield from _of_cell(cell.spec, cell.record.outcome.facts, _means(cell.record.outcome.metrics))


def _of_cell(spec: Any, facts: Mapping[str, Any], means: Mapping[str, float]) -> Iterable[Comparison]:
    (member, *others) = spec.stack
    described = facts.get("collection")
    if others or member.budget or described is None or spec.task.limit is not None or described.get("split") != "test":
        return []
    model = "" if spec.system.kind == "lexical" else spec.system.ref
    return compare(described["name"], member.method, member.knobs, model, means)


def _means(metrics: Iterable[Any]) -> dict[str, float]:
    return {m.metric.column: m.value for m in metrics if m.value is not None}
