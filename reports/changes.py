"""Which samples a method changed: the ones to look at when a number moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsebench.metrics import Metric
from sparsebench.records import CellRecord
from sparsebench.reports.notation import visible
from sparsebench.reports.sources import Samples

TEXT_LIMIT = 240


@dataclass(frozen=True)
class Change:
    """One sample of a cell, with its baseline's. Texts are empty where the licence does not let them be shown."""

    sample: str
    baseline: float
    value: float
    target: str = ""
    baseline_response: str = ""
    response: str = ""


@dataclass(frozen=True)
class Changes:
    """The samples that changed most in a headline metric.

    Attributes:
        metric: The metric.
        changed: How many samples changed in it at all.
        samples: How many there are.
        shown: The largest changes, by their size and then by their place in the data.
        texts: Whether texts may be shown.
    """

    metric: Metric
    changed: int
    samples: int
    shown: tuple[Change, ...]
    texts: bool


def changed_samples(record: CellRecord, baseline: Samples, ours: Samples, limit: int) -> Changes | None:
    """The samples that changed most, of two cells whose samples stand in one order; None without a metric to go by."""
    metrics = [m.metric for m in record.outcome.metrics if m.metric.column in baseline.columns]
    if not metrics:
        return None
    metric = next((m for m in metrics if m.headline), metrics[0])
    before, after = (_per_unit(samples, metric) for samples in (baseline, ours))
    size = np.abs(after - before)
    changed = np.flatnonzero(size > 0)
    largest = changed[np.argsort(-size[changed], kind="stable")][:limit]
    texts = bool(record.data) and all(fact.publish_text for fact in record.data)

    wanted = ["sample", *(c for c in ("target", "response") if texts and c in ours.columns)]
    new = ours.table.select(wanted).take(largest).to_pydict()
    shared = ["response"] if "response" in wanted and "response" in baseline.columns else []
    old = baseline.table.select(shared).take(largest).to_pydict()

    def text(columns: dict[str, list[object]], name: str, k: int) -> str:
        value = columns[name][k] if name in columns else None
        return "" if value is None else visible(str(value)[:TEXT_LIMIT])

    shown = tuple(
        Change(
            sample=str(new["sample"][k]),
            baseline=float(before[i]),
            value=float(after[i]),
            target=text(new, "target", k),
            baseline_response=text(old, "response", k),
            response=text(new, "response", k),
        )
        for k, i in enumerate(largest)
    )
    return Changes(metric, len(changed), len(size), shown, texts)


def _per_unit(samples: Samples, metric: Metric) -> np.ndarray:
    """Numerators over denominators: a right answer, or nats a token."""
    weight = samples.weight(metric)
    numerator = samples.numerator(metric)
    return numerator if weight is None else numerator / weight
