"""Has anything become worse? One results folder against another, and any two results against each other.

Two tiers. Counts (sparsity, FLOPs, zeros) are exact: they must be equal, unless the model itself is another. Quality is
statistical: each headline metric is compared on the same samples, all of them together corrected by Holm, so that the chance
of a false alarm in the whole check is at most alpha.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsebench.errors import InputError, IntegrityError
from sparsebench.identity import seed_of
from sparsebench.metrics import Metric
from sparsebench.reports import notation
from sparsebench.reports.collect import budget_name, method_name
from sparsebench.reports.comparisons import Judged, Judgement, compare_cells, compare_rows, conclusions, margin_of, row_of
from sparsebench.reports.lm_eval_files import LoggedTask, is_log, read_log
from sparsebench.reports.matching import Match, match
from sparsebench.reports.pairing import align, clusters_of, metric_mismatch, task_mismatch
from sparsebench.reports.sources import Samples, Source, open_sources, read_samples
from sparsebench.reports.verdicts import correct, noise_of, not_exercised
from sparsebench.store import StoredCell
from sparsebench.suite import Conclude, Margin

PathLike = str | os.PathLike[str]

FAILING = ("regressed", "changed", "missing", "failed", "refused")
"""Verdicts that fail a gate."""
TOLERANCE = 1e-9
"""Relative difference up to which counts are equal."""


@dataclass(frozen=True)
class CheckRow:
    """One comparison of a check.

    Attributes:
        tier: `cells`, `exact` or `quality`.
        name: The cell, as printed: `wanda 50% on facts-qa`.
        what: The metric or count; empty where a whole cell is meant.
        verdict: `same`, one of the four verdicts, `no signal`, `not exercised`, `changed`, `missing`, `failed`, `refused`,
            `new` or `not compared`.
        fails: Whether it fails the gate.
        reason: Why.
        baseline: The value in the baseline folder.
        candidate: The value in the candidate folder.
        judgement: The comparison, for the quality tier.
        headline: Whether it takes part in the gate.
    """

    tier: str
    name: str
    what: str
    verdict: str
    fails: bool
    reason: str = ""
    baseline: float | None = None
    candidate: float | None = None
    judgement: Judgement | None = None
    headline: bool = True


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        rows: Every comparison, in a fixed order.
        notes: What else differs between the two: model fingerprints, method versions.
        alpha: Chance of a false alarm.
    """

    rows: list[CheckRow]
    notes: list[str] = field(default_factory=list)
    alpha: float = 0.05

    @property
    def passed(self) -> bool:
        """Whether nothing fails the gate."""
        return not any(row.fails for row in self.rows)

    @property
    def failures(self) -> list[CheckRow]:
        """The rows that fail it."""
        return [row for row in self.rows if row.fails]


def check(
    baseline: PathLike,
    candidate: PathLike,
    *,
    alpha: float | None = None,
    tolerance: float = TOLERANCE,
    strict: bool = False,
) -> CheckResult:
    """Whether quality or cost of a candidate is worse than a baseline's.

    Every cell of the baseline folder must be in the candidate folder, by system, stack and task. Another model fingerprint is
    what such a check may be for, and is shown; other task, data or metric versions are refused.

    Args:
        baseline: Results folder to compare with; its suite declares margins and alpha.
        candidate: Results folder that is tested.
        alpha: Chance of a false alarm, instead of the suite's.
        tolerance: Relative difference up to which counts are equal.
        strict: Fail headline metrics that are inconclusive too: quality must be shown to be kept.

    Raises:
        InputError: A folder without results, or none of the baseline's cells in the candidate.
    """
    source, other = open_sources([baseline])[0], _other(baseline, candidate)
    rules = _rules(source, other, alpha)
    found = match(list(source.cells.values()), list(other.cells.values()))
    if found.matches and all(m.candidate is None for m in found.matches):
        raise InputError(f"{other.name} has none of the cells of {source.name}", "they match by model, stack and task")
    rows = [_broken_row(cell, problem) for s in (source, other) for cell, problem in sorted(s.broken.items())]
    pairs: list[_Pair] = []
    for m in found.matches:
        rows += _cell_rows(m, tolerance)
        if m.candidate is not None and not m.refused:
            made = _pair_of_cells(m)
            rows += made if isinstance(made, list) else []
            pairs += [made] if isinstance(made, _Pair) else []
    rows += [CheckRow("cells", _name(cell), "", "new", False, "only in the candidate") for cell in found.new]
    rows += _quality(pairs, rules, _noise(source), strict=strict)
    return CheckResult(rows, _notes(found.matches), rules.alpha)


def compare(
    a: PathLike, b: PathLike, *, alpha: float | None = None, margin: float | None = None
) -> CheckResult:
    """Two results folders, or two lm-eval logs: difference, interval, flips and verdict of every metric they share.

    Args:
        a: A results folder, or a log that `lm_eval --log_samples` wrote: its folder, or one `results_*.json`.
        b: Another of the same kind. Where each has one model only, the models may differ.
        alpha: Level of the tests; the suite's, or .05.
        margin: The acceptable loss as a fraction of the value in `a`; the suite's, or .05.

    Raises:
        InputError: One is a results folder and the other a log, or they share nothing.
    """
    if is_log(a) != is_log(b):
        raise InputError(f"{a} and {b} are not of one kind", "compare two results folders, or two lm-eval logs")
    if is_log(a):
        rules, pairs, rows, notes = Conclude(), *_log_pairs(a, b)
        noise: dict[tuple[str | None, str], float] = {}
    else:
        source, other = open_sources([a])[0], _other(a, b)
        rules = _rules(source, other, None)
        found = match(list(source.cells.values()), list(other.cells.values()), other_model=True)
        made = [_pair_of_cells(m) for m in found.matches if m.candidate is not None and not m.refused]
        pairs = [p for p in made if isinstance(p, _Pair)]
        rows = [row for p in made if isinstance(p, list) for row in p]
        notes, noise = _notes(found.matches), _noise(source)
        lonely = [m.baseline for m in found.matches if m.candidate is None] + found.new
        rows += [CheckRow("cells", _name(cell), "", "not compared", False, "only in one of the two") for cell in lonely]
    if not pairs and not any(row.verdict == "refused" for row in rows):
        raise InputError(f"{a} and {b} share no cell", "cells match by model, stack and task")
    update: dict[str, object] = {}
    if alpha is not None:
        update["alpha"] = alpha
    if margin is not None:
        update["margins"] = {"*": {"*": Margin(relative=margin)}}
    rules = Conclude.model_validate({**rules.model_dump(exclude_none=True), **update})
    return CheckResult(rows + _quality(pairs, rules, noise, strict=False), notes, rules.alpha)


def _other(baseline: PathLike, candidate: PathLike) -> Source:
    """The second folder, named so that it is told from the first; the same folder may be given twice."""
    sources = open_sources([baseline, candidate])
    return sources[-1]


def _rules(source: Source, other: Source, alpha: float | None) -> Conclude:
    rules = conclusions(source if source.suite else other)
    return rules if alpha is None else rules.model_copy(update={"alpha": alpha})


def _noise(source: Source) -> dict[tuple[str | None, str], float]:
    """Noise of the baseline folder's own A/A rows."""
    wanted = {c.record.placement.baseline for c in source.cells.values() if c.record.placement.role == "noise"}
    kept = {k: c for k, c in source.cells.items() if k in wanted or c.record.placement.role == "noise"}
    return noise_of(compare_cells([Source(source.name, source.root, source.suite, kept)])) if kept else {}


def _name(cell: StoredCell, source: Source | None = None) -> str:
    item = Judged(source or Source("", Path(), {}, {}), cell)
    parts = [method_name(item), budget_name(cell.spec.stack), cell.spec.system.replica, cell.record.placement.config]
    return notation.printable(f"{' '.join(p for p in parts if p)} on {cell.spec.task.id}", 120)


def _broken_row(cell: str, problem: str) -> CheckRow:
    return CheckRow("cells", cell, "", "failed", True, notation.printable(problem, 300))


def _notes(matches: Sequence[Match]) -> list[str]:
    counts: dict[str, int] = {}
    for m in matches:
        for difference in m.differs:
            counts[difference] = counts.get(difference, 0) + 1
    return [f"other {notation.printable(d, 160)}, in {n} cell{'s' if n > 1 else ''}" for d, n in sorted(counts.items())]


def _cell_rows(m: Match, tolerance: float) -> Iterator[CheckRow]:
    """What is said of a cell as a whole, and of its counts."""
    name = _name(m.baseline)
    if m.candidate is None:
        yield CheckRow("cells", name, "", "missing", True, "not in the candidate")
        return
    if m.refused:
        yield CheckRow("cells", name, "", "refused", True, f"{m.refused}: {', '.join(m.differs)}")
        return
    before, after = m.baseline.record.outcome, m.candidate.record.outcome
    if after.status == "failed":
        was = before.status == "failed"
        reason = notation.printable(after.error or "no reason was recorded", 300)
        yield CheckRow("cells", name, "", "not compared" if was else "failed", not was, reason)
        return
    if before.status == "failed":
        yield CheckRow("cells", name, "", "new", False, "it failed in the baseline")
        return
    if not_exercised(after) and not not_exercised(before):
        yield CheckRow("cells", name, "", "changed", True, f"no longer exercised: {not_exercised(after)}")
    fingerprints = m.baseline.spec.system.fingerprint, m.candidate.spec.system.fingerprint
    if fingerprints[0] != fingerprints[1] or m.baseline.spec.system.ref != m.candidate.spec.system.ref:
        yield CheckRow("exact", name, "", "not compared", False, "another model: its counts may differ")
        return
    yield from _count_rows(name, m.baseline, m.candidate, tolerance)


def _count_rows(name: str, baseline: StoredCell, candidate: StoredCell, tolerance: float) -> Iterator[CheckRow]:
    """Counts that are not equal, and how many are."""
    before, after = counts_of(baseline), counts_of(candidate)
    equal = 0
    for what in sorted({*before, *after}):
        a, b = before.get(what), after.get(what)
        if a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance):
            equal += 1
            continue
        cheaper = what in COSTS and a is not None and b is not None and b < a
        worse = what in COSTS and a is not None and b is not None and b > a
        verdict = "improved" if cheaper else "regressed" if worse else "changed"
        reason = "only in one of the two" if a is None or b is None else "should be equal"
        yield CheckRow("exact", name, what, verdict, not cheaper, "costs less" if cheaper else reason, a, b)
    if equal:
        yield CheckRow("exact", name, "", "same", False, f"{equal} count{'s' if equal > 1 else ''} equal")


COSTS = ("flops", "bytes_per_token")
"""Counts of which less is better, and no defect."""


def counts_of(cell: StoredCell) -> dict[str, float]:
    """What a cell counted: sparsity, densities, FLOPs, bytes and counters; no times and no memory."""
    outcome = cell.record.outcome
    named = {
        name: getattr(outcome, name)
        for name in ("sparsity", "flops", "flops_dense", "bytes_per_token", "bytes_per_token_dense", "decode_queries")
    }
    densities = {f"density {name}": value for name, value in outcome.densities.items()}
    counters = {f"counter {name}": value for name, value in outcome.counters.items()}
    return {k: v for k, v in {**named, **densities, **counters}.items() if v is not None}


@dataclass(frozen=True)
class _Pair:
    """Two sets of samples in one order, and the metrics that they share."""

    name: str
    task: str
    metrics: list[Metric]
    a: Samples
    b: Samples
    seed: tuple[str, ...]
    noise_key: str | None = None
    unexercised: str = ""


def _pair_of_cells(m: Match) -> _Pair | list[CheckRow]:
    """The samples of two cells, or why they must not be compared."""
    if m.candidate is None or "failed" in (m.baseline.record.outcome.status, m.candidate.record.outcome.status):
        return []
    name = _name(m.baseline)
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
    return _Pair(
        name, m.baseline.spec.task.id, metrics, a, aligned, (m.baseline.id, m.candidate.id),
        place.baseline or m.baseline.id, not_exercised(m.baseline.record.outcome) or "",
    )  # fmt: skip


def _log_pairs(a: PathLike, b: PathLike) -> tuple[list[_Pair], list[CheckRow], list[str]]:
    """Tasks that two lm-eval logs share."""
    ours, theirs = read_log(a), read_log(b)
    pairs: list[_Pair] = []
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
        pairs.append(_Pair(name, name, metrics, one.samples, aligned, (name,)))
    models = {log.model for log in (*ours.values(), *theirs.values())}
    notes = [f"models: {notation.printable(' and '.join(sorted(models)), 200)}"] if len(models) > 1 else []
    return pairs, rows, notes


def _shared_metrics(one: LoggedTask, other: LoggedTask) -> list[Metric]:
    """Metrics of both; binary only where both logs hold nothing but 0 and 1."""
    theirs = {metric.name: metric for metric in other.metrics}
    shared = [(m, theirs[m.name]) for m in one.metrics if m.name in theirs]
    return [m if m.kind == t.kind else m.model_copy(update={"kind": "continuous"}) for m, t in shared]


def _quality(
    pairs: Sequence[_Pair], rules: Conclude, noise: dict[tuple[str | None, str], float], *, strict: bool
) -> list[CheckRow]:
    """Every shared metric compared: headlines corrected by Holm over all of them, the rest by Benjamini and Hochberg."""
    judged: list[tuple[_Pair, Judgement]] = []
    for pair in pairs:
        judged += [(pair, judgement) for judgement in _judge_pair(pair, rules, noise)]
    tested = [j for p, j in judged if j.comparison is not None and j.above_chance is not False and not p.unexercised]
    correct([j for j in tested if j.metric.headline], gate=True)
    correct([j for j in tested if not j.metric.headline], gate=False)
    return [_quality_row(pair, judgement, strict) for pair, judgement in judged]


def _judge_pair(pair: _Pair, rules: Conclude, noise: dict[tuple[str | None, str], float]) -> Iterator[Judgement]:
    clusters = clusters_of(pair.a)
    for metric in pair.metrics:
        row = row_of(metric, pair.b, clusters, margin_of(rules, pair.task, metric.name), rules.alpha)
        row.judgement.noise = noise.get((pair.noise_key, metric.name))
        if not row.judgement.obstacle:
            seed = seed_of("check", *pair.seed, metric.name)
            compare_rows(pair.a, clusters, [row], seed=seed, resamples=rules.resamples)
        yield row.judgement


def _quality_row(pair: _Pair, judgement: Judgement, strict: bool) -> CheckRow:
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
        "quality", pair.name, metric.name, verdict, fails, notation.printable(reason, 300),
        comparison.dense, comparison.sparse, judgement, metric.headline,
    )  # fmt: skip


def _same(pair: _Pair, metric: Metric) -> bool:
    columns = [c for c in (metric.column, metric.weight) if c in pair.a.columns]
    return all(np.array_equal(pair.a.numbers(c), pair.b.numbers(c), equal_nan=True) for c in columns)
