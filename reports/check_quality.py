"""The statistical tier of a check: every shared metric on the same samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparsebench.errors import IntegrityError
from sparsebench.identity import seed_of
from sparsebench.metrics import Metric
from sparsebench.reports import notation
from sparsebench.reports.check_result import CheckRow, name_of
from sparsebench.reports.comparisons import Judgement, compare_rows, give_intervals, row_of
from sparsebench.reports.lm_eval_files import LoggedTask, read_log
from sparsebench.reports.matching import Match
from sparsebench.reports.pairing import align, clusters_of, metric_mismatch, task_mismatch
from sparsebench.reports.rules import margin_of
from sparsebench.reports.sources import Samples, read_samples
from sparsebench.reports.verdicts import correct, not_exercised
from sparsebench.suite import Conclude

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class SamplePair:
    """Two sets of samples in one order, and the metrics that they share."""

    name: str
    task: str
    metrics: list[Metric]
    a: Samples
    b: Samples
    seed: tuple[str, ...]
    noise_key: str | None = None
    unexercised: str = ""


def pair_of_cells(m: Match) -> SamplePair | list[CheckRow]:
    """The samples of two cells, or why they must not be compared."""
    if m.candidate is None or "failed" in (m.baseline.record.outcome.status, m.candidate.record.outcome.status):
        return []
    name = name_of(m.baseline)
    mismatch = task_mismatch(m.candidate.spec.task, m.baseline.spec.task)
    if mismatch:
        return [CheckRow("quality", name, "", "refused", True, mismatch)]
    try:
        a, b = read_samples(m.baseline), read_samples(m.candidate)
    except IntegrityError as error:
        return [CheckRow("quality", name, "", "failed", True, error.message)]
    aligned = align(b, a)
    if isinstance(aligned, str):
        return [CheckRow("quality", name, "", "refused", True, aligned)]
    theirs = {recorded.metric.name: recorded.metric for recorded in m.candidate.record.outcome.metrics}
    metrics, rows = [], []
    for metric in (recorded.metric for recorded in m.baseline.record.outcome.metrics):
        other = theirs.get(metric.name)
        wrong = "missing in the candidate" if other is None else metric_mismatch(other, metric)
        if wrong:
            rows.append(CheckRow("quality", name, metric.name, "refused", True, wrong, headline=metric.headline))
        else:
            metrics.append(metric)
    if rows:
        return rows
    place = m.baseline.record.placement
    return SamplePair(
        name,
        m.baseline.spec.task.id,
        metrics,
        a,
        aligned,
        (m.baseline.id, m.candidate.id),
        place.baseline or m.baseline.id,
        not_exercised(m.baseline.record.outcome) or "",
    )


def log_pairs(a: PathLike, b: PathLike) -> tuple[list[SamplePair], list[CheckRow], list[str]]:
    """Tasks that two lm-eval logs share."""
    ours, theirs = read_log(a), read_log(b)
    pairs: list[SamplePair] = []
    rows: list[CheckRow] = []
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            rows.append(CheckRow("cells", name, "", "not compared", False, "only in one of the two"))
            continue
        wrong = task_mismatch(other.spec, one.spec)
        aligned = wrong or align(other.samples, one.samples)
        if isinstance(aligned, str):
            rows.append(CheckRow("quality", name, "", "refused", True, aligned))
            continue
        metrics = _shared_metrics(one, other)
        rows += [CheckRow("quality", name, metric, "not compared", False, why) for metric, why in one.left_out.items()]
        pairs.append(SamplePair(name, name, metrics, one.samples, aligned, (name,)))
    models = {log.model for log in (*ours.values(), *theirs.values())}
    notes = [f"models: {notation.printable(' and '.join(sorted(models)), 200)}"] if len(models) > 1 else []
    return pairs, rows, notes


def _shared_metrics(one: LoggedTask, other: LoggedTask) -> list[Metric]:
    """Metrics of both; binary only where both logs hold nothing but 0 and 1."""
    theirs = {metric.name: metric for metric in other.metrics}
    shared = [(m, theirs[m.name]) for m in one.metrics if m.name in theirs]
    return [m if m.kind == t.kind else m.model_copy(update={"kind": "continuous"}) for m, t in shared]


def quality_rows(
    pairs: Sequence[SamplePair], rules: Conclude, noise: dict[tuple[str | None, str], float], *, strict: bool
) -> list[CheckRow]:
    """Every shared metric: headlines corrected by Holm over all of them, the rest by Benjamini and Hochberg."""
    judged: list[tuple[SamplePair, Judgement]] = []
    for pair in pairs:
        judged += [(pair, judgement) for judgement in _judge_pair(pair, rules, noise)]
    tested = [j for p, j in judged if j.comparison is not None and j.above_chance is not False and not p.unexercised]
    correct([j for j in tested if j.metric.headline], gate=True)
    correct([j for j in tested if not j.metric.headline], gate=False)
    return [_quality_row(pair, judgement, strict) for pair, judgement in judged]


def _judge_pair(pair: SamplePair, rules: Conclude, noise: dict[tuple[str | None, str], float]) -> Iterator[Judgement]:
    clusters = clusters_of(pair.a)
    for metric in pair.metrics:
        row = row_of(metric, pair.b, margin_of(rules, pair.task, metric.name), rules.alpha)
        give_intervals([row], clusters)
        row.judgement.noise = noise.get((pair.noise_key, metric.name))
        if not row.judgement.obstacle:
            seed = seed_of("check", *pair.seed, metric.name)
            compare_rows(pair.a, clusters, [row], seed=seed, resamples=rules.resamples)
        yield row.judgement


def _quality_row(pair: SamplePair, judgement: Judgement, strict: bool) -> CheckRow:
    metric, comparison = judgement.metric, judgement.comparison
    if comparison is None:
        return CheckRow("quality", pair.name, metric.name, "refused", metric.headline, judgement.obstacle)
    verdict, reason = judgement.verdict, judgement.reason
    if _same(pair, metric):
        verdict, reason = "same", "every sample is the same"
    elif pair.unexercised:
        verdict, reason = "not exercised", pair.unexercised
    elif judgement.above_chance is False:
        verdict, reason = "no signal", "the baseline is not above chance"
    judgement.verdict, judgement.reason = verdict, reason
    fails = metric.headline and (verdict == "regressed" or (strict and verdict == "inconclusive"))
    return CheckRow(
        "quality",
        pair.name,
        metric.name,
        verdict,
        fails,
        notation.printable(reason, 300),
        comparison.dense,
        comparison.sparse,
        judgement,
        metric.headline,
    )


def _same(pair: SamplePair, metric: Metric) -> bool:
    columns = [c for c in (metric.column, metric.weight) if c in pair.a.columns]
    return all(np.array_equal(pair.a.numbers(c), pair.b.numbers(c), equal_nan=True) for c in columns)
