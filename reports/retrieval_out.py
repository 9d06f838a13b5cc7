"""Retrieval results in the forms of other tools: TREC's runs and MTEB's results.

Of each ranking the first ten documents are stored, and only where the collection's texts may be published: a run that
is written from results is cut there. `retrieval.run.write_trec` writes whole runs, from Python.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsebench.errors import InputError
from sparsebench.reports import notation
from sparsebench.reports.sources import open_sources, read_samples
from sparsebench.retrieval.evaluate import EVALUATOR
from sparsebench.retrieval.mteb import metric_name
from sparsebench.store import StoredCell
from sparsebench.tasks.retrieval import DEPTH


def write_trec(results_folders: Sequence[str | os.PathLike[str]], out: Path) -> list[Path]:
    """Write `TASK/METHOD-CELL.trec` for each retrieval cell whose rankings are stored; returns the files.

    The score of a document is one over its rank, since scores are not stored.

    Raises:
        InputError: No cell has rankings, or the place cannot be written to.
    """
    written = []
    for cell in _cells(results_folders):
        samples = read_samples(cell)
        if "response" not in samples.columns:
            continue
        tag = _name(cell)
        for query, ranking in zip(samples.texts("sample"), samples.texts("response"), strict=True):
            for identifier in (query, *json.loads(ranking or "[]")):
                if identifier.split() != [identifier]:
                    message = f"{cell.spec.task.id}: {identifier!r} cannot stand in a TREC run"
                    raise InputError(message, "its ids have no white space and are not empty")
        lines = [
            f"{query} Q0 {doc} {rank} {1 / rank:.9g} {tag}\n"
            for query, ranking in zip(samples.texts("sample"), samples.texts("response"), strict=True)
            for rank, doc in enumerate(json.loads(ranking or "[]"), start=1)
        ]
        written.append(_written(out / notation.slug(cell.spec.task.id) / f"{tag}.trec", "".join(lines)))
    if not written:
        raise InputError("no retrieval cell has its rankings stored", "they are where texts may be published")
    return written


def write_mteb(results_folders: Sequence[str | os.PathLike[str]], out: Path) -> list[Path]:
    """Write `MODEL/METHOD-CELL/TASK.json` for each retrieval cell, as MTEB's repository of results has them.

    The content hash of the collection stands for the data set's revision, the method with its cell for the model's.

    Raises:
        InputError: There are no retrieval cells, or the place cannot be written to.
    """
    written = []
    for cell in _cells(results_folders):
        text = json.dumps(_result(cell), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        model = re.sub(r"[^A-Za-z0-9._-]+", "__", notation.model_name(cell.spec.system.ref)) or "lexical"
        written.append(_written(out / model / _name(cell) / f"{notation.slug(cell.spec.task.id)}.json", text))
    if not written:
        raise InputError("these results have no retrieval cells")
    return written


def _result(cell: StoredCell) -> dict[str, Any]:
    outcome = cell.record.outcome
    collection = outcome.facts.get("collection") or {}
    scores: dict[str, Any] = {metric_name(with_depth(m.metric.column)): m.value for m in outcome.metrics}
    main = next(m for m in outcome.metrics if m.metric.headline)
    scores |= {"main_score": main.value, "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "task_name": cell.spec.task.id,
        "dataset_revision": collection.get("content_hash", cell.spec.task.data),
        "mteb_version": None,
        "evaluator": outcome.facts.get("evaluator", EVALUATOR),
        "evaluation_time": outcome.seconds,
        "kg_co2_emissions": None,
        "scores": {collection.get("split", "test"): [scores]},
    }


def with_depth(metric: str) -> str:
    """A task's metric by its whole name: one without a cut-off looks at the first `DEPTH` documents."""
    return metric if "@" in metric else f"{metric}@{DEPTH}"


def _cells(results_folders: Sequence[str | os.PathLike[str]]) -> Iterator[StoredCell]:
    """Finished retrieval cells: those of systems that are no language model."""
    for source in open_sources(results_folders):
        for cell in source.cells.values():
            if cell.record.outcome.status == "ok" and cell.spec.system.kind != "causal-lm":
                yield cell


def _name(cell: StoredCell) -> str:
    return f"{notation.slug(cell.record.placement.label)}-{cell.id[:6]}"


def _written(place: Path, text: str) -> Path:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror}") from None
    return place
