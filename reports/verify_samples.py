"""What a stored cell's samples give, beside what its record says of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsebench.data.answers import first_answer, is_right, normalise
from sparsebench.errors import IntegrityError
from sparsebench.metrics import Metric
from sparsebench.packing import round_fraction
from sparsebench.reports.comparisons import noise_of, same_value
from sparsebench.reports.pairing import unusable
from sparsebench.reports.sources import Samples
from sparsebench.reports.verify_record import Found
from sparsebench.store import StoredCell
from sparsebench.tasks.definition import TaskDefinition


def sample_findings(cell: StoredCell, samples: Samples, tasks: dict[str, TaskDefinition]) -> Iterator[Found]:
    """Everything that the samples of a cell say.

    Args:
        cell: The cell.
        samples: Its samples.
        tasks: Definitions that are known here, by id.
    """
    yield from _numbers(cell, samples)
    yield from _definitions(cell, tasks.get(cell.spec.task.id))
    yield from _counts(cell, samples)
    yield from _scores(cell, samples, tasks.get(cell.spec.task.id))


def _numbers(cell: StoredCell, samples: Samples) -> Iterator[Found]:
    """Every metric from the samples."""
    for recorded in cell.record.outcome.metrics:
        metric = recorded.metric
        try:
            numerator, weight = samples.numerator(metric), samples.weight(metric)
        except IntegrityError as error:
            yield "error", "metrics", f"{metric.name}: {error.message}"
            continue
        wrong = unusable(metric, numerator, weight)
        if wrong:
            yield "error", "metrics", wrong
            continue
        bits = cell.record.rounded_bits
        if bits is not None and not np.array_equal(round_fraction(numerator, bits), numerator, equal_nan=True):
            yield "error", "samples", f"{metric.name} is said to be rounded to {bits} bits, and is not"
        value, n = metric.value(samples.frame), int((~np.isnan(numerator)).sum())
        if not same_value(value, recorded.value, noise_of(cell.record, numerator, weight)):
            yield "error", "metrics", f"{metric.name} is recorded as {recorded.value}, its samples give {value}"
        if n != recorded.n:
            yield "error", "metrics", f"{metric.name} is recorded with n = {recorded.n}, its samples are {n}"
    permitted = bool(cell.record.data) and all(fact.publish_text for fact in cell.record.data)
    if "target" in samples.columns and not permitted:
        yield "error", "licence", "the samples hold the data's answers, which its licence does not let be shown"


def _definitions(cell: StoredCell, task: TaskDefinition | None) -> Iterator[Found]:
    """Metrics are those of the task, where the task is known here in the same form."""
    if task is None or task.definition_hash != cell.spec.task.definition:
        return
    known = {metric.name: metric for metric in task.metrics}
    recorded: dict[str, Metric] = {m.metric.name: m.metric for m in cell.record.outcome.metrics}
    for name in sorted(known.keys() - recorded.keys()):
        yield "error", "metrics", f"the task's {name} is missing"
    for name, metric in recorded.items():
        if name in known and metric != known[name]:
            fields = (f for f in Metric.model_fields if getattr(metric, f) != getattr(known[name], f))
            yield "error", "metrics", f"{name} is not the task's: other {', '.join(fields)}"
        elif name not in known:
            yield "error", "metrics", f"{name} is no metric of the task"


def _counts(cell: StoredCell, samples: Samples) -> Iterator[Found]:
    """As many samples as the counters saw."""
    outcome, rows = cell.record.outcome, samples.table.num_rows
    limit = cell.spec.task.limit
    if limit is not None and rows > limit:
        yield "error", "samples", f"{rows} samples, limited to {limit}"
    decoded = outcome.counters.get("decode.tokens", 0.0)
    expected = outcome.facts.get("batch") if outcome.timed else rows
    if decoded and outcome.decode_queries and round(decoded / outcome.decode_queries) != expected:
        counted = round(decoded / outcome.decode_queries)
        yield "error", "samples", f"{expected} samples, the counters are of {counted}"
    scored = outcome.facts.get("tokens_scored")
    weights = next((m.metric.weight for m in outcome.metrics if m.metric.weight in samples.columns), None)
    if isinstance(scored, int | float) and weights is not None:
        total = float(np.nansum(samples.numbers(weights)))
        if round(total) != round(scored):
            yield "error", "samples", f"{total:,.0f} tokens in the samples, {scored:,.0f} were scored"


def _scores(cell: StoredCell, samples: Samples, task: TaskDefinition | None) -> Iterator[Found]:
    """Right and wrong are what answers and targets say, where both are stored."""
    if {"response", "correct"} - samples.columns or task is None or task.scorer != "short-answer":
        return
    if task.definition_hash != cell.spec.task.definition:
        return
    responses, correct = samples.texts("response"), samples.numbers("correct")
    if "empty" in samples.columns:
        empty = np.array([not normalise(first_answer(response)) for response in responses])
        wrong = int((empty != (samples.numbers("empty") == 1)).sum())
        if wrong:
            yield "error", "scores", f"{wrong} samples are called empty, or not, and their answers say otherwise"
    if "target" not in samples.columns:
        return
    targets = samples.texts("target")
    right = np.array([is_right(r, [t]) for r, t in zip(responses, targets, strict=True)])
    missed, alias = int((right & (correct == 0)).sum()), bool((~right & (correct == 1)).any())
    if missed:
        yield "error", "scores", f"{missed} samples are called wrong, and their answer is the target"
    if alias:
        yield "cannot check", "scores", "some samples are right by another answer than the stored one, if at all"
