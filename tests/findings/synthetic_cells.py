"""Results folders with the samples that a test asks for: no model is involved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparsebench.identity import cell_id
from sparsebench.metrics import Metric
from sparsebench.records import (
    CellRecord,
    CellSpec,
    Environment,
    MemberSpec,
    MetricValue,
    Outcome,
    Placement,
    SystemSpec,
    TaskSpec,
)
from sparsebench.store import Store

MODEL = SystemSpec(kind="causal-lm", ref="path:tiny", fingerprint="f" * 16, dtype="float32")
PERPLEXITY = Metric(name="perplexity", column="nll", transform="exp", higher_is_better=False, headline=True)
ACCURACY = Metric(name="accuracy", column="correct", kind="binary", headline=True, chance=0.0)
KL = Metric(name="KL", column="kl", higher_is_better=False, headline=True)
RECALL = Metric(name="recall", column="recall", headline=True, chance=0.0)


@dataclass
class Folder:
    """A results folder that cells are written to."""

    root: Path
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store.create(self.root)
        self.store.write_suite({"suite": {"suite": "synthetic", "version": 1}, "lock": {}})

    def cell(
        self,
        task: str,
        metrics: list[Metric],
        frame: pd.DataFrame,
        method: str = "",
        budget: dict[str, Any] | None = None,
        knobs: dict[str, Any] | None = None,
        seed: int = 0,
        calibration: str | dict[str, Any] = "",
        limit: int | None = None,
        ref: str = MODEL.ref,
        **outcome: Any,
    ) -> None:
        """Write one cell; without a method it is the dense one."""
        text = {"data": "c4", "hash": calibration} if isinstance(calibration, str) else calibration
        stack = [MemberSpec(method=method, knobs=knobs or {}, budget=budget)] if method else []
        spec = CellSpec(
            system=MODEL.model_copy(update={"ref": ref}),
            stack=stack,
            task=TaskSpec(id=task, version=1, definition="d", data="x", limit=limit),
            calibration=text if calibration else None,
            seed=seed,
        )
        values = [MetricValue(metric=m, value=m.value(frame), n=len(frame)) for m in metrics]
        record = CellRecord(
            cell=cell_id(spec.plain()),
            placement=Placement(
                suite="s", suite_version=1, grid="g", family="pruning", baseline=None, label=method or "dense"
            ),
            outcome=Outcome(**{"status": "ok", "metrics": values, **outcome}),
        )
        failed = record.outcome.status == "failed"
        self.store.write(spec, record, Environment(hardware="test"), None if failed else frame)

    def windows(self, task: str, nll: np.ndarray, **cell: Any) -> None:
        """A perplexity cell from the mean loss of each window of 100 tokens."""
        names = [f"w{i:04d}" for i in range(len(nll))]
        frame = pd.DataFrame({"sample": names, "cluster": names, "nll": 100 * nll, "nll.weight": 100.0})
        self.cell(task, [PERPLEXITY], frame, **cell)

    def questions(self, task: str, right: np.ndarray, clusters: np.ndarray, **cell: Any) -> None:
        """An accuracy cell."""
        names = [f"q{i:05d}" for i in range(len(right))]
        frame = pd.DataFrame(
            {"sample": names, "cluster": [f"c{c:03d}" for c in clusters], "correct": right.astype(float)}
        )
        self.cell(task, [ACCURACY], frame, **cell)

    def values(
        self, task: str, metric: Metric, values: np.ndarray, names: list[str] | None = None, **cell: Any
    ) -> None:
        """A cell with one value a sample."""
        names = names or [f"s{i:05d}" for i in range(len(values))]
        self.cell(task, [metric], pd.DataFrame({"sample": names, "cluster": names, metric.column: values}), **cell)
