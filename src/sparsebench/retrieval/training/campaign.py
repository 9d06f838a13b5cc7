"""Several cells trained one after another under one budget, and the suite that compares what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.training.settings import Settings
from sparsebench.retrieval.training.train import Trainer

LINES = 10
"""Lines of progress that a run prints."""


def train_all(runs: Sequence[Settings], out: Path, until: int | None = None) -> Iterator[str]:
    """Train each run in a folder of its own, and say how it goes.

    Args:
        runs: The runs; they share all but their cells.
        out: Where the folders go, and `suite.yaml` once all are trained.
        until: Step at which each run stops for now.

    Raises:
        InputError: A task is no retrieval task, or a folder holds a run of other settings.
        MissingError: A model or a collection is not to be had.
    """
    from sparsebench.systems.loading import model_files

    whole = True
    for settings in runs:
        base, collection = model_files(settings.base), _collection(settings)
        trainer = Trainer(settings, base.folder, collection, out / settings.cell.name)
        every = max(1, settings.steps // LINES)
        while trainer.step < min(until or settings.steps, settings.steps):
            trainer.run(min((trainer.step // every + 1) * every, until or settings.steps))
            done = trainer.steps[-1]
            yield (
                f"{settings.cell.name} {done.step + 1}/{settings.steps}: loss {done.loss:.4f}, penalty "
                f"{done.penalty:.4f}, {done.query_terms:.0f} and {done.document_terms:.0f} terms"
            )
        if trainer.step < settings.steps:
            whole = False
        else:
            yield f"wrote {trainer.encoder()}"
    if whole:
        path = out / "suite.yaml"
        path.write_text(yaml.safe_dump(suite_of(runs, out), sort_keys=False), encoding="utf-8")
        yield f"wrote {path}: sparsebench run {path}"


def suite_of(runs: Sequence[Settings], out: Path) -> dict[str, Any]:
    """A suite that evaluates every trained cell on the task that it was trained on."""
    grids = [
        {
            "name": settings.cell.name,
            "system": settings.cell.name,
            "baseline": "learned-sparse",
            "tasks": [settings.task],
            "methods": ["learned-sparse", {"method": "learned-sparse", "budgets": {"terms": [64, 32, 16]}}],
        }
        for settings in runs
    ]
    systems = {
        settings.cell.name: {
            "kind": "sparse-encoder",
            "model": f"path:{(out / settings.cell.name / 'encoder').absolute()}",
        }
        for settings in runs
    }
    return {
        "suite": "trained-cells",
        "version": 1,
        "title": "Cells of the unified framework, trained under one budget",
        "seed": 0,
        "systems": systems,
        "grids": grids,
        "conclude": {"margins": {"*": {"*": {"points": 0.03}}}},
    }


def _collection(settings: Settings) -> Collection:
    from sparsebench.tasks import registry

    bound: Any = registry.get(settings.task).bind(None)
    if not isinstance(getattr(bound, "collection", None), Collection):
        raise InputError(f"{settings.task} is no retrieval task", "name one of family retrieval, or its .yaml file")
    found: Collection = bound.collection
    return found
