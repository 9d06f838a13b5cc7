"""Results as `lm_eval --log_samples` would have written them, for tools that read its files.

Each system and method becomes a folder with `results_DATE.json` and one `samples_TASK_DATE.jsonl` a task. A metric in
which only some of the samples have a part becomes a task of its own, since lm-eval's metrics are over all documents of
a task; one that no such file can hold (a mean with weights that is no perplexity) is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.errors import InputError, IntegrityError
from sparsebench.identity import canonical
from sparsebench.metrics import Metric
from sparsebench.reports import notation
from sparsebench.reports.atom import time_of
from sparsebench.reports.sources import Array, Samples, open_sources, read_samples
from sparsebench.store import StoredCell


@dataclass(frozen=True)
class _Column:
    """One metric of one cell, over the samples that have a part in it."""

    metric: Metric
    present: np.ndarray
    values: list[Any]
    value: float


def write_logs(results_folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[Path]:
    """Write every readable cell; returns the results files.

    Raises:
        InputError: A folder without results, or a place that cannot be written to.
    """
    systems: dict[str, list[StoredCell]] = defaultdict(list)
    for source in open_sources(results_folders):
        for cell in source.cells.values():
            if cell.record.outcome.status == "ok":
                systems[_system(source.name, cell)].append(cell)
    written = []
    for name, cells in sorted(systems.items()):
        try:
            written.append(_write(Path(out) / name, cells))
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from None
    return written


def _system(source: str, cell: StoredCell) -> str:
    """A folder's name for a system under a stack."""
    spec, place = cell.spec, cell.record.placement
    same = canonical([source, spec.system.model_dump(), spec.seed])
    stack = canonical([m.plain() for m in spec.stack])
    digest = hashlib.sha256((same + stack).encode()).hexdigest()[:6]
    name = re.sub(r"[^a-z0-9]+", "-", place.label.lower()).strip("-")[:60]
    return f"{name or 'cell'}-{digest}"


def _write(folder: Path, cells: Sequence[StoredCell]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    date = max(time_of(cell.environment.started) for cell in cells).rstrip("Z").replace(":", "-")
    data: dict[str, Any] = {
        "results": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
    }
    for cell in cells:
        for name, columns in _tasks(cell):
            lines = list(_lines(cell, read_samples(cell), columns))
            place = folder / f"samples_{name}_{date}.jsonl"
            place.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
            data["results"][name] = {"alias": name, **{f"{c.metric.name},none": c.value for c in columns}}
            data["configs"][name] = {"task": name, "metadata": {"version": cell.spec.task.version, "cell": cell.id}}
            data["versions"][name], data["n-shot"][name] = cell.spec.task.version, 0
            data["higher_is_better"][name] = {c.metric.name: c.metric.higher_is_better for c in columns}
            data["n-samples"][name] = {"original": len(lines), "effective": len(lines)}
    first = cells[0]
    model = " ".join([notation.model_name(first.spec.system.ref), first.record.placement.label])
    data |= {"model_source": "sparsebench", "model_name": model, "config": {"model": model}}
    place = folder / f"results_{date}.json"
    place.write_text(json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return place


def _tasks(cell: StoredCell) -> Iterator[tuple[str, list[_Column]]]:
    """The tasks that a cell becomes: metrics over the same samples go together."""
    samples = read_samples(cell)
    groups: dict[bytes, list[_Column]] = defaultdict(list)
    for recorded in cell.record.outcome.metrics:
        column = _column(recorded.metric, samples)
        if column is not None:
            groups[column.present.tobytes()].append(column)
    task = notation.slug(cell.spec.task.id)
    for columns in groups.values():
        whole = bool(columns[0].present.all())
        yield task if whole else f"{task}-{notation.slug(columns[0].metric.name)}", columns


def _column(metric: Metric, samples: Samples) -> _Column | None:
    try:
        numerator, weight = samples.numerator(metric), samples.weight(metric)
    except IntegrityError:
        return None
    present = ~np.isnan(numerator)
    value = metric.value(samples.frame)
    if value is None or (weight is not None and metric.transform != "exp"):
        return None
    if metric.transform == "exp":  # lm-eval holds log-likelihoods
        values: list[Any] = _log_likelihoods(numerator, weight, present)
    else:
        values = [float(x) for x in numerator[present]]
    return _Column(metric, present, values, value)


def _log_likelihoods(numerator: Array, weight: Array | None, present: np.ndarray) -> list[Any]:
    likelihood = [-float(x) if math.isfinite(x) else None for x in numerator[present]]
    if weight is None:
        return likelihood
    return [[x, float(w)] for x, w in zip(likelihood, weight[present], strict=True)]


def _lines(cell: StoredCell, samples: Samples, columns: Sequence[_Column]) -> Iterator[dict[str, Any]]:
    names = np.array(samples.texts("sample"))[columns[0].present]
    responses = samples.texts("response") if "response" in samples.columns else []
    shown = np.array(responses)[columns[0].present] if responses else []
    for k, name in enumerate(names):
        yield {
            "doc_id": str(name),
            "doc": {"sample": str(name)},
            "resps": [[str(shown[k])]] if len(shown) else [],
            "filter": "none",
            "metrics": [column.metric.name for column in columns],
            "doc_hash": _hash(cell.spec.task.data, str(name)),
            "prompt_hash": _hash(cell.spec.task.definition, str(name)),
            "target_hash": _hash(cell.spec.task.data, str(name), "target"),
            **{column.metric.name: column.values[k] for column in columns},
        }


def _hash(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
