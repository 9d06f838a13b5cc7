"""Every cell's metrics from its samples, and each paired with its baseline's, sample by sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsebench.errors import IntegrityError
from sparsebench.identity import seed_of
from sparsebench.metrics import LARGEST_EXPONENT, Metric
from sparsebench.records import CellRecord
from sparsebench.reports.changes import Changes, changed_samples
from sparsebench.reports.pairing import align, clusters_of, metric_mismatch, task_mismatch, unusable
from sparsebench.reports.processes import each
from sparsebench.reports.rules import conclusions, margin_of
from sparsebench.reports.sources import Array, Cells, IntArray, Samples, Source, read_samples
from sparsebench.stats import Comparison, Margin, compare_many, signal, value_bounds_many
from sparsebench.stats.paired import Kind, Transform
from sparsebench.store import StoredCell
from sparsebench.suite import Conclude

MANY = 1_000
"""Cells from which on they are compared on all processors, so many at a time."""


@dataclass
class Judgement:
    """One metric of one cell.

    Attributes:
        metric: The metric.
        value: Its value, computed again from the samples; None without any.
        n: Samples that have a part in it.
        alpha: Level of the tests.
        ci_low: Lower end of its interval at confidence 1 - alpha; NaN where there is none.
        ci_high: Upper end.
        obstacle: Why there is no comparison; empty where there is one.
        comparison: The comparison with the baseline.
        above_chance: Whether the baseline is above chance; None where the metric has no chance level.
        room: Whether it is so by more than the margin, so that a collapse would be seen.
        noise: The A/A row's absolute change in this metric; None where there is no such row.
        verdict: One of `notation.VERDICTS`.
        reason: Why.
        p_adjusted: Two-sided p value of "no change", corrected within `family`.
        p_noninferior: One-sided p value of "worse by the margin or more"; NaN where nothing could show the contrary.
        p_kept: The same, corrected within `family_of_kept`.
        family: How it was corrected, and among how many tests: `Holm, 12 tests`.
        family_of_kept: The same of `p_kept`: `in order, 4 sequences`.
    """

    metric: Metric
    value: float | None
    n: int
    alpha: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    obstacle: str = ""
    comparison: Comparison | None = None
    above_chance: bool | None = None
    room: bool = True
    noise: float | None = None
    verdict: str = "inconclusive"
    reason: str = ""
    p_adjusted: float = math.nan
    p_noninferior: float = math.nan
    p_kept: float = math.nan
    family: str = ""
    family_of_kept: str = ""


@dataclass
class Judged:
    """A cell with all of its metrics.

    Attributes:
        source: Where it was read from.
        cell: The cell.
        judgements: One a metric; empty for a cell without usable samples.
        problem: Why there are none.
        changes: The samples that changed most, where they were asked for.
        baseline: The cell that it is compared with, itself for a baseline; None where that is not to be had.
    """

    source: Source
    cell: StoredCell
    judgements: list[Judgement] = field(default_factory=list)
    problem: str = ""
    changes: Changes | None = None
    baseline: StoredCell | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether other cells are compared with this one, and it with none."""
        place = self.cell.record.placement
        return place.role == "baseline" or place.baseline == self.cell.id

    @property
    def grid(self) -> tuple[object, ...]:
        """What the tests of a gate have in common: suite, grid, the baseline's system, and task.

        The baseline's, because a row may run on another system than its grid: BM25 beside a learned encoder. With the
        model's content and the task's data and limit: cells that another run left in the folder are no tests of it.
        """
        place, system, task = self.cell.record.placement, (self.baseline or self.cell).spec.system, self.cell.spec.task
        model = system.ref, system.fingerprint
        return place.suite, place.suite_version, place.grid, *model, task.id, task.definition, task.data, task.limit


def compare_cells(sources: Sequence[Source], *, changes: int = 0) -> list[Judged]:
    """Compare every readable cell with its baseline; no verdicts yet.

    Args:
        sources: Opened results folders; a baseline is looked for in a cell's own source first.
        changes: How many changed samples of each cell to keep.

    Raises:
        IntegrityError: A suite whose rules for conclusions are wrong.
    """
    cells = Cells(sources)
    rules = {source.name: conclusions(source) for source in sources}
    judged = [Judged(source, cell) for source, cell in cells]
    groups = [piece for group in _groups(cells, judged) for piece in _pieces(*group)]

    def compared(group: tuple[StoredCell | str, list[Judged]]) -> list[tuple[list[Judgement], str, Changes | None]]:
        _compare_group(*group, rules, changes)
        return [(item.judgements, item.problem, item.changes) for item in group[1]]

    for (_, members), found in zip(groups, each(compared, groups, worth=len(judged) > MANY), strict=True):
        for item, result in zip(members, found, strict=True):
            item.judgements, item.problem, item.changes = result
    return judged


def _groups(cells: Cells, judged: Iterable[Judged]) -> Iterator[tuple[StoredCell | str, list[Judged]]]:
    """Cells with the baseline that they share, or with the reason why they have none."""
    groups: dict[tuple[str, str], tuple[StoredCell | str, list[Judged]]] = {}
    for item in judged:
        named = item.cell.id if item.is_baseline else item.cell.record.placement.baseline
        if item.cell.record.outcome.status == "failed":
            item.problem = item.cell.record.outcome.error or "failed"
            continue
        found = cells.find(item.source, named) if named else None
        if found:
            item.baseline = found[1]
            groups.setdefault((found[0].name, found[1].id), (found[1], []))[1].append(item)
        else:
            why = "its baseline is not among the results" if named else "its grid names no baseline"
            groups.setdefault(("", why), (f"not compared: {why}", []))[1].append(item)
    yield from groups.values()


def _pieces(baseline: StoredCell | str, members: list[Judged]) -> Iterator[tuple[StoredCell | str, list[Judged]]]:
    """A group in parts for processors to share. A cell's resamples are its baseline's, in whatever part it is."""
    for first in range(0, len(members), MANY):
        yield baseline, members[first : first + MANY]


@dataclass(frozen=True)
class Row:
    """A metric on its way to a comparison; arrays are `[samples]`, in the baseline's order."""

    judgement: Judgement
    margin: Margin | None
    numerator: Array
    weight: Array | None


def _compare_group(baseline: StoredCell | str, members: list[Judged], rules: dict[str, Conclude], changes: int) -> None:
    """Read the samples of cells that share a baseline, and compare them with it, all at once for each metric."""
    base = _samples_of_baseline(baseline)
    clusters = clusters_of(base) if isinstance(base, Samples) else None
    found: list[tuple[Judged, str, list[Row]]] = []
    for item in members:
        rule = rules[item.source.name]
        try:
            samples = read_samples(item.cell)
            paired = _paired(item, samples, baseline, base)
            rows = list(_rows(item, paired if isinstance(paired, Samples) else samples, rule))
            if isinstance(paired, str):
                give_intervals(rows, clusters_of(samples))
        except IntegrityError as error:
            item.problem = error.message
            continue
        item.judgements = [row.judgement for row in rows]
        found.append((item, paired if isinstance(paired, str) else "", rows))
        if changes and not item.is_baseline and isinstance(base, Samples) and isinstance(paired, Samples):
            item.changes = changed_samples(item.cell.record, base, paired, changes)
    give_intervals([row for _, unpaired, rows in found if not unpaired for row in rows], clusters)
    waiting: dict[tuple[str, Margin | None, float, int], list[Row]] = defaultdict(list)
    for item, unpaired, rows in found:
        rule = rules[item.source.name]
        for row in rows:
            row.judgement.obstacle = row.judgement.obstacle or unpaired or _obstacle(row, item, baseline)
            if not row.judgement.obstacle:
                waiting[row.judgement.metric.name, row.margin, rule.alpha, rule.resamples].append(row)
    if isinstance(base, Samples) and isinstance(baseline, StoredCell):
        for (name, _, _, resamples), rows in waiting.items():
            # One seed for all cells of a baseline: they see the same resamples, which costs and varies less.
            compare_rows(base, clusters, rows, seed=seed_of("bootstrap", baseline.id, name), resamples=resamples)


def _samples_of_baseline(baseline: StoredCell | str) -> Samples | str:
    if isinstance(baseline, str):
        return baseline
    if baseline.record.outcome.status == "failed":
        return "not compared: its baseline failed"
    try:
        return read_samples(baseline)
    except IntegrityError as error:
        return f"not compared: its baseline cannot be used ({error.message})"


def _paired(item: Judged, samples: Samples, baseline: StoredCell | str, base: Samples | str) -> Samples | str:
    """The samples in the baseline's order, or why they cannot be compared with it."""
    if item.is_baseline:
        return samples
    if isinstance(base, str) or isinstance(baseline, str):
        return str(base)
    return task_mismatch(item.cell.spec.task, baseline.spec.task) or align(samples, base)


def _rows(item: Judged, samples: Samples, rule: Conclude) -> Iterator[Row]:
    """Each metric by itself: its value from the samples.

    Raises:
        IntegrityError: The samples lack a metric's column, or do not give the value that was recorded.
    """
    for recorded in item.cell.record.outcome.metrics:
        margin = margin_of(rule, item.cell.spec.task.id, recorded.metric.name)
        row = row_of(recorded.metric, samples, margin, rule.alpha)
        value = row.judgement.value
        if not same_value(value, recorded.value, noise_of(item.cell.record, row.numerator, row.weight)):
            name = recorded.metric.name
            raise IntegrityError(f"cell {item.cell.id}: recorded {name} {recorded.value}, its samples give {value}")
        yield row


def row_of(metric: Metric, samples: Samples, margin: Margin | None, alpha: float) -> Row:
    """One metric by itself, without its interval.

    Raises:
        IntegrityError: The samples lack its column.
    """
    numerator, weight = samples.numerator(metric), samples.weight(metric)
    value, n = value_of(metric, numerator, weight), len(numerator) - int(np.count_nonzero(np.isnan(numerator)))
    judgement = Judgement(metric, value, n, alpha, obstacle=unusable(metric, numerator, weight) or "")
    return Row(judgement, margin, numerator, weight)


def value_of(metric: Metric, numerator: Array, weight: Array | None) -> float | None:
    """`Metric.value` for plain arrays, ten times as fast: a report has tens of thousands of them.

    Args:
        metric: The metric.
        numerator: Its numerators, `[samples]`; NaN where a sample has no part in it.
        weight: Its denominators, `[samples]`; None where each is 1.
    """
    present = ~np.isnan(numerator)
    if not present.any():
        return None
    total = float(present.sum()) if weight is None else float(weight[present].sum())
    ratio = float(numerator[present].sum()) / total if total else math.nan
    if metric.transform == "exp" and not math.isnan(ratio):
        return math.exp(min(ratio, LARGEST_EXPONENT))
    return ratio if math.isfinite(ratio) else None


def same_value(a: float | None, b: float | None, noise: float = 0.0) -> bool:
    """Whether a recorded and a recomputed value agree; `noise` is what rounding the samples may have moved them by."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-9 + noise, abs_tol=1e-12 + noise)


def noise_of(record: CellRecord, numerator: Array, weight: Array | None) -> float:
    """The most that a value of samples that were rounded in packing may be off by, of itself."""
    if record.rounded_bits is None or np.isnan(numerator).all():
        return 0.0
    # A sum over another that are both off by half of this; the exponential of it is off by as many times its size.
    size = np.nansum(np.abs(numerator)) / (len(numerator) if weight is None else np.nansum(weight))
    return float(2.0**-record.rounded_bits * max(1.0, size))


def give_intervals(rows: Iterable[Row], clusters: IntArray | None) -> None:
    """Give rows of usable, finite numbers the intervals of their values; those of a kind get them at once.

    Args:
        rows: Rows in one order of samples.
        clusters: The clusters of these, `[samples]`.
    """
    kinds: dict[tuple[Kind, Transform, float, bool], list[Row]] = defaultdict(list)
    for row in rows:
        metric, weighted = row.judgement.metric, row.weight is not None
        if not row.judgement.obstacle and not np.isinf(row.numerator).any():
            kinds[kind_of(metric, row.weight), metric.transform, row.judgement.alpha, weighted].append(row)
    for (kind, transform, alpha, weighted), alike in kinds.items():
        numerators = np.stack([row.numerator for row in alike], axis=1)
        weights = np.stack([w for row in alike if (w := row.weight) is not None], axis=1) if weighted else None
        found = value_bounds_many(numerators, weights=weights, clusters=clusters, kind=kind, transform=transform)
        for row, bounds in zip(alike, found, strict=True):
            low, high = bounds.lower(alpha / 2), bounds.upper(alpha / 2)
            row.judgement.ci_low = low if math.isfinite(low) else math.nan
            row.judgement.ci_high = high if math.isfinite(high) else math.nan


def kind_of(metric: Metric, weight: Array | None) -> Kind:
    """Which tests a metric gets: exact ones only where each sample counts one."""
    return "binary" if metric.kind == "binary" and weight is None else "continuous"


def _obstacle(row: Row, item: Judged, baseline: StoredCell | str) -> str:
    """What keeps one metric from being compared, where the samples are the same."""
    if item.is_baseline or isinstance(baseline, str):
        return "baseline"
    metric = row.judgement.metric
    theirs = next((m.metric for m in baseline.record.outcome.metrics if m.metric.name == metric.name), None)
    if theirs is None:
        return f"not compared: the baseline has no metric {metric.name}"
    return metric_mismatch(metric, theirs) or ""


def compare_rows(base: Samples, clusters: IntArray | None, rows: Sequence[Row], *, seed: int, resamples: int) -> None:
    """Compare rows that share a metric, a margin and a baseline; each row's judgement gets its comparison.

    Args:
        base: The baseline's samples.
        clusters: Their clusters, `[samples]`.
        rows: Rows in the order of the baseline's samples.
        seed: Of the bootstrap; rows with one seed see the same resamples.
        resamples: How many of them.
    """
    first = rows[0].judgement
    metric, alpha, margin = first.metric, first.alpha, rows[0].margin
    dense, weight = base.numerator(metric), base.weight(metric)
    wrong = unusable(metric, dense, weight)
    for row in rows:
        if wrong:
            row.judgement.obstacle = f"not compared: the baseline's {wrong}"
        elif (row.weight is None) != (weight is None):
            row.judgement.obstacle = "not comparable: only one of the two has weights"
    rows = [row for row in rows if not row.judgement.obstacle]
    if not rows:
        return
    weights = None if weight is None else np.stack([w for r in rows if (w := r.weight) is not None], axis=1)
    # Infinite log-likelihoods of a collapsed system are numbers too; the verdict says so.
    with np.errstate(all="ignore"):
        compared = compare_many(
            dense,
            np.stack([row.numerator for row in rows], axis=1),
            weight_dense=weight,
            weight_sparse=weights,
            clusters=clusters,
            kind=kind_of(metric, weight),
            transform=metric.transform,
            higher_is_better=metric.higher_is_better,
            margin=margin,
            alpha=alpha,
            seed=seed,
            resamples=resamples,
        )
    above_chance, room = _signal(metric, dense, weight, clusters, margin, alpha)
    for row, comparison in zip(rows, compared, strict=True):
        row.judgement.comparison = comparison
        row.judgement.above_chance, row.judgement.room = above_chance, room


def _signal(
    metric: Metric, dense: Array, weight: Array | None, clusters: IntArray | None, margin: Margin | None, alpha: float
) -> tuple[bool | None, bool]:
    """Whether a baseline is above chance, and whether by more than the margin."""
    present = ~np.isnan(dense)
    if metric.chance is None or not present.any() or not np.isfinite(dense[present]).all():
        return None, True
    mean = float(dense[present].sum()) / float(present.sum() if weight is None else weight[present].sum())
    size = margin.absolute(math.exp(mean) if metric.transform == "exp" else mean) if margin else 0.0

    def above(level: float) -> bool:
        return signal(
            dense,
            level,
            alpha,
            weights=weight,
            clusters=clusters,
            kind=kind_of(metric, weight),
            transform=metric.transform,
            higher_is_better=metric.higher_is_better,
        ).present

    return above(metric.chance), above(metric.chance + (size if metric.higher_is_better else -size))
