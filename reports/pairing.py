"""Whether two cells may be compared at all, and their samples brought into one order."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsebench.metrics import Metric
from sparsebench.records import TaskSpec
from sparsebench.reports.sources import Array, IntArray, Samples

_CHANGES_NUMBERS = ("version", "column", "kind", "transform", "higher_is_better")


def task_mismatch(ours: TaskSpec, theirs: TaskSpec) -> str | None:
    """What differs between the tasks of two cells; None when their numbers may be compared."""
    differs = [
        f"{what} ({_short(a)} against {_short(b)})"
        for what, a, b in (
            ("task", ours.id, theirs.id),
            ("task version", ours.version, theirs.version),
            ("task definition", ours.definition, theirs.definition),
            ("data", ours.data, theirs.data),
            ("limit", ours.limit, theirs.limit),
        )
        if a != b
    ]
    return f"not comparable: other {', other '.join(differs)}" if differs else None


def metric_mismatch(ours: Metric, theirs: Metric) -> str | None:
    """What differs between two metrics of one name, in what their numbers rest on."""
    for field in _CHANGES_NUMBERS:
        a, b = getattr(ours, field), getattr(theirs, field)
        if a != b:
            return f"not comparable: other metric {field.replace('_', ' ')} ({a} against {b})"
    return None


def align(samples: Samples, to: Samples) -> Samples | str:
    """`samples` in the order of `to`, or why they are not the same samples."""
    if samples.ids.equals(to.ids):
        found = samples
    else:
        ours, theirs = pd.Index(samples.texts("sample")), pd.Index(to.texts("sample"))
        if not ours.is_unique or not theirs.is_unique:
            return "not comparable: a sample comes twice"
        missing, extra = len(theirs.difference(ours)), len(ours.difference(theirs))
        if missing or extra:
            return (
                f"not comparable: other samples ({missing} of the baseline's are missing, {extra} are not among them)"
            )
        found = Samples(samples.table.take(ours.get_indexer(theirs)))
    if ("cluster" in found.columns) != ("cluster" in to.columns) or (
        "cluster" in to.columns and not found.table.column("cluster").equals(to.table.column("cluster"))
    ):
        return "not comparable: other clusters"
    return found


def clusters_of(samples: Samples) -> IntArray | None:
    """Cluster numbers in the order of their labels, `[samples]`; None where samples are independent."""
    if "cluster" not in samples.columns:
        return None
    _, numbers = np.unique(np.array(samples.texts("cluster"), dtype=np.str_), return_inverse=True)
    return numbers.astype(np.int64)


def unusable(metric: Metric, numerator: Array, weight: Array | None) -> str | None:
    """What keeps a metric's numbers from being used at all."""
    present = ~np.isnan(numerator)
    if metric.kind == "binary" and weight is None and not ((numerator == 0) | (numerator == 1) | ~present).all():
        return f"{metric.name} is binary, but has values other than 0 and 1"
    if weight is not None and not (weight[present] > 0).all():
        return f"{metric.name} has weights that are not positive"
    return None


def _short(value: object) -> str:
    return str(value) if not isinstance(value, str) or len(value) <= 48 else f"{value[:12]}..."
