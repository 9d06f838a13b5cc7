"""Logs that `lm_eval --log_samples` wrote, read as samples and metrics like any cell's.

A log is `results_DATE.json` (or `NAME_DATE.json`) with `samples_TASK_DATE.jsonl` beside it, one line for each
document and filter (lm-eval 0.4.13, `loggers/evaluation_tracker.py`). A metric is taken over only where the samples
give the value that the log reports: as a mean, or as one of lm-eval's perplexities. Others (F1, BLEU, ...) are no
sums over samples.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sparsebench.errors import InputError, IntegrityError
from sparsebench.identity import digest
from sparsebench.metrics import Metric
from sparsebench.records import TaskSpec
from sparsebench.reports.sources import Array, Samples

DATE = re.compile(r"_(\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?)\.json$")
REPRODUCED = 1e-6
"""Relative difference up to which the samples give the value that is reported."""

Lines = Mapping[str, Mapping[str, dict[str, Any]]]
"""Samples by filter and document."""


@dataclass(frozen=True)
class LoggedTask:
    """One task of a log.

    Attributes:
        spec: The task; prompts and number of shots make its definition, documents and targets its data.
        model: Name of the model.
        metrics: Metrics that the samples reproduce.
        samples: One row a document.
        left_out: Why the other metrics are not there, by name.
    """

    spec: TaskSpec
    model: str
    metrics: list[Metric]
    samples: Samples
    left_out: dict[str, str]


def is_log(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an lm-eval log: a results file, or a folder with one that is no results folder of ours."""
    place = Path(path)
    if place.is_file():
        return place.suffix == ".json"
    return place.is_dir() and not (place / "cells").is_dir() and any(_results_files(place))


def read_log(path: str | os.PathLike[str]) -> dict[str, LoggedTask]:
    """The tasks of a log, by name.

    Args:
        path: A results file, or a folder that holds exactly one, at any depth.

    Raises:
        InputError: None or several, or no samples beside it.
        IntegrityError: Files that are not what lm-eval writes.
    """
    file = _results_file(Path(path))
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks = {name: results["results"][name] for name in results["configs"]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"{file}: not an lm-eval results file ({error!r})") from None
    date = DATE.search(file.name)
    found = {}
    for name, reported in sorted(tasks.items()):
        log = file.with_name(f"samples_{name}_{date[1] if date else ''}.jsonl")
        if not log.exists():
            raise InputError(f"{file}: no {log.name} beside it", "run lm_eval with --log_samples")
        found[name] = _task(name, results, reported, _by_filter(log))
    if not found:
        raise InputError(f"{file}: no task")
    return found


def _results_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.json")) if DATE.search(path.name))


def _results_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = list(_results_files(path)) if path.is_dir() else []
    if len(files) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:5])
        raise InputError(f"{path}: {len(files)} lm-eval results files", f"name one of: {names}" if files else None)
    return files[0]


def _by_filter(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Lines of a samples file by filter and document."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                sample = json.loads(line)
                documents = found.setdefault(str(sample["filter"]), {})
                identity = str(sample["doc_id"])
                new = identity not in documents
                documents[identity] = {**sample, "metrics": list(sample["metrics"])}
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise IntegrityError(f"{file}:{number}: not a sample of lm-eval ({error!r})") from None
            if not new:
                raise IntegrityError(f"{file}:{number}: document {identity} comes twice")
    if not found:
        raise IntegrityError(f"{file}: no samples")
    return found


def _task(name: str, results: dict[str, Any], reported: dict[str, Any], lines: Lines) -> LoggedTask:
    documents = next(iter(lines.values()))
    if any(other.keys() != documents.keys() for other in lines.values()):
        raise IntegrityError(f"lm-eval log of {name}: its filters have different documents")
    columns: dict[str, Any] = {"sample": list(documents)}
    metrics: list[Metric] = []
    left_out: dict[str, str] = {}
    higher = results.get("higher_is_better", {}).get(name) or {}
    chance = _chance(results["configs"][name], list(documents.values()))
    for filter_name, samples in lines.items():
        for key in sorted({metric for sample in samples.values() for metric in sample["metrics"]}):
            printed = key if filter_name == "none" else f"{key} ({filter_name})"
            value = reported.get(f"{key},{filter_name}")
            read = _metric(printed, [sample.get(key) for sample in samples.values()], value)
            if read is None:
                left_out[printed] = "no sum over samples gives the value that is reported"
                continue
            metric, numerator, weight = read
            better = higher.get(key)
            known = {
                "higher_is_better": bool(better) if better is not None else metric.higher_is_better,
                "chance": chance if key in ("acc", "acc_norm") else None,
            }
            metrics.append(metric.model_copy(update=known))
            columns[metric.column] = numerator
            if weight is not None:
                columns[metric.weight] = weight
    return LoggedTask(
        _spec(name, results, documents),
        str(results.get("model_name") or results.get("config", {}).get("model") or "unnamed"),
        metrics,
        Samples(pa.table(columns)),
        left_out,
    )


def _spec(name: str, results: dict[str, Any], documents: Mapping[str, dict[str, Any]]) -> TaskSpec:
    prompts = [[key, sample.get("prompt_hash")] for key, sample in sorted(documents.items())]
    data = [[key, sample.get("doc_hash"), sample.get("target_hash")] for key, sample in sorted(documents.items())]
    shots, version = results.get("n-shot", {}).get(name), results.get("versions", {}).get(name)
    return TaskSpec(
        id=name,
        version=0,
        definition=f"{shots}-shot, version {version}, prompts {digest(prompts)[:8]}",
        data=digest(data),
        limit=len(documents),
    )


def _chance(config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> float | None:
    """What guessing among the choices reaches; None where the log does not tell how many there are."""
    mutual = any("acc_mutual_info" in sample["metrics"] for sample in samples)
    if config.get("output_type") != "multiple_choice" or mutual:
        return None
    choices = [len(sample.get("arguments") or ()) for sample in samples]
    return sum(1 / c for c in choices) / len(choices) if all(choices) else None


def _metric(name: str, values: Sequence[Any], reported: Any) -> tuple[Metric, Array, Array | None] | None:
    """The form of a metric that gives the reported value, with its numerators and weights; None if none does."""
    if not isinstance(reported, int | float):
        return None
    scalars = [v for v in values if isinstance(v, int | float)]
    pairs = [v for v in values if isinstance(v, list) and len(v) == 2 and all(isinstance(x, int | float) for x in v)]
    forms: list[tuple[Metric, Array, Array | None]] = []
    if len(scalars) == len(values):
        column = np.array(scalars, dtype=np.float64)
        kind = "binary" if np.isin(column, (0.0, 1.0)).all() else "continuous"
        forms = [
            (Metric(name=name, column=name, kind=kind, headline=True), column, None),
            (_perplexity(name), -column, None),
        ]
    elif len(pairs) == len(values):
        numerator, weight = np.array(pairs, dtype=np.float64).T
        bits = Metric(name=name, column=name, higher_is_better=False, headline=True, unit="bits")
        forms = [(_perplexity(name), -numerator, weight), (bits, -numerator / math.log(2), weight)]
    for metric, numerator, weight in forms:
        total = float(weight.sum()) if weight is not None else len(numerator)
        mean = float(numerator.sum()) / total if total else math.nan
        value = mean if metric.transform == "identity" else math.exp(min(mean, 700))
        if math.isclose(value, reported, rel_tol=REPRODUCED, abs_tol=1e-12):
            return metric, numerator, weight
    return None


def _perplexity(name: str) -> Metric:
    return Metric(name=name, column=name, transform="exp", higher_is_better=False, headline=True)
