"""Single numbers for many rows: how sparse at a given perplexity, where a curve breaks, the worst task, calibration.

A mean over tasks hides the one that a method destroys, so it never stands alone here: the worst task and its loss are
beside it. What is computed from the tidy table alone takes its paired intervals from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sparsebench.errors import IntegrityError
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.pairing import align, clusters_of
from sparsebench.reports.sources import read_samples
from sparsebench.stats import Breakpoint, CalibrationError, calibration_error, find_breakpoint
from sparsebench.stats.breakpoint import FEWEST_LEVELS

Row = dict[str, Any]
Array = npt.NDArray[np.float64]
RATIO = 1.01
"""Perplexity over the dense model's that counts as kept: PPL-1% of the literature on activation sparsity."""
SERIES = ("source", "suite", "grid", "model", "family", "method", "config", "calibration", "seed")
"""What the levels of one curve have in common, beside its task and metric."""


@dataclass(frozen=True)
class SparsityAtRatio:
    """How sparse a method may be before perplexity rises by more than a given ratio.

    Attributes:
        row: A row of the tidy table that says which method, model and task are meant.
        ratio: The perplexity ratio.
        tested: The largest realised sparsity at which, and at all lower ones, the ratio is not exceeded; None where the
            lowest already exceeds it.
        at: Where the curve of log ratios first reaches it, linear between levels and from dense at 0; None where it
            does not.
        low: The same for the upper ends of the paired intervals: less is certain at their confidence.
        high: The same for the lower ends; None where they do not reach it.
    """

    row: Row
    ratio: float
    tested: float | None
    at: float | None
    low: float | None
    high: float | None


def sparsity_at_ratio(table: pd.DataFrame, ratio: float = RATIO) -> list[SparsityAtRatio]:
    """The largest sparsity at a perplexity ratio, of every method on every perplexity.

    For weights it is the share of zeros, for activations that of the inputs in scope (PPL-p% at ratio 1 + p / 100).

    Args:
        table: The tidy table.
        ratio: Above 1.
    """
    rows = table[(table["metric"] == "perplexity") & (table["status"] == "ok")]
    rows = rows[rows["role"].isin(["method", "comparator", "control"]) & (rows["verdict"] != "not exercised")]
    rows = rows[rows["sparsity"].notna() & (rows["value"] > 0) & (rows["dense"] > 0)]
    rows = rows.assign(pattern=rows["budget"].str.contains(":"))  # 2:4 is no level of the curve on which 50 % lies
    found = []
    for _, group in rows.groupby([*SERIES, "task", "sparsity_of", "pattern"], sort=True, dropna=False):
        levels = group.sort_values("sparsity", kind="stable")
        x = np.concatenate([[0.0], levels["sparsity"].to_numpy()])
        dense = levels["dense"].to_numpy()
        ends = {"at": levels["value"], "low": dense + levels["delta_high"], "high": dense + levels["delta_low"]}
        heights = {name: _log_ratio(end.to_numpy(dtype=float), dense) for name, end in ends.items()}
        kept = heights["at"][1:] <= math.log(ratio)
        whole = len(kept) if kept.all() else int(kept.argmin())
        reached = {name: _reached(x, y, math.log(ratio)) for name, y in heights.items()}
        found.append(
            SparsityAtRatio(
                row={str(name): value for name, value in levels.iloc[0].items()},
                ratio=ratio,
                tested=float(x[whole]) if whole else None,
                at=reached["at"],
                low=reached["low"],
                high=reached["high"],
            )
        )
    return found


def _log_ratio(values: Array, dense: Array) -> Array:
    """Logarithms of ratios to the dense value, from 0 at the dense model itself; NaN where a value is not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([[0.0], np.log(values / dense)])


def _reached(x: Array, y: Array, height: float) -> float | None:
    """Where a curve first rises to a height, linear between its points; None where it does not."""
    if np.isnan(y).any() or not (y >= height).any():
        return None
    first = int((y >= height).argmax())
    if not math.isfinite(y[first]):
        return float(x[first - 1])
    share = (height - y[first - 1]) / (y[first] - y[first - 1])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


@dataclass(frozen=True)
class OverTasks:
    """One method at one budget over all tasks with signal.

    Attributes:
        row: A row of the tidy table that says which method, model and budget are meant.
        tasks: How many headline metrics were compared.
        mean: The mean relative loss: 0.1 where a tenth of the dense value is lost on average; negative for a gain.
        worst: The largest relative loss.
        worst_task: Where that is.
        worst_metric: And in which metric.
    """

    row: Row
    tasks: int
    mean: float
    worst: float
    worst_task: str
    worst_metric: str


def over_tasks(table: pd.DataFrame) -> list[OverTasks]:
    """Mean and worst relative loss over tasks, of every method at every budget.

    Tasks without signal count for nothing, as there is nothing to lose in them; so do rows that were not exercised.
    """
    rows = table[
        table["headline"] & (table["status"] == "ok") & table["role"].isin(["method", "comparator", "control"])
    ]
    rows = rows[~rows["verdict"].isin(["no signal", "not exercised"]) & rows["relative"].notna()]
    rows = rows.assign(loss=np.where(rows["higher_is_better"], -rows["relative"], rows["relative"]))
    found = []
    for _, group in rows.groupby([*SERIES, "budget"], sort=True, dropna=False):
        worst = group.iloc[int(group["loss"].to_numpy().argmax())]
        found.append(
            OverTasks(
                row={str(name): value for name, value in group.iloc[0].items()},
                tasks=len(group),
                mean=float(group["loss"].mean()),
                worst=float(worst["loss"]),
                worst_task=str(worst["task"]),
                worst_metric=str(worst["metric"]),
            )
        )
    return found


@dataclass(frozen=True)
class Knee:
    """Essential sparsity: the breakpoint of one method's curve on one headline metric.

    Attributes:
        label: Method with its knobs.
        model: The model.
        task: The task.
        metric: The metric.
        found: The fit; a knee is only claimed where it is `supported`.
    """

    label: str
    model: str
    task: str
    metric: str
    found: Breakpoint


def knees(judged: Sequence[Judged], resamples: int = 2000) -> list[Knee]:
    """The breakpoint of every curve of six levels or more, fitted to the samples that all its levels share.

    Of perplexity the mean negative log-likelihood is fitted. Levels are realised sparsities.

    Args:
        judged: Judged cells.
        resamples: Resamples of each breakpoint's interval.

    Raises:
        IntegrityError: Samples that cannot be read.
    """
    return [knee for items in _curves(judged) for knee in _knees_of(items, resamples)]


@dataclass(frozen=True)
class Calibrated:
    """The calibration error of one cell on one task of choices.

    Attributes:
        item: The cell.
        error: Its calibration error.
    """

    item: Judged
    error: CalibrationError


def calibration_errors(judged: Sequence[Judged], resamples: int = 2000) -> list[Calibrated]:
    """Expected calibration error of every cell whose samples hold how sure the model was, the dense ones included.

    Args:
        judged: Judged cells.
        resamples: Resamples of each interval.

    Raises:
        IntegrityError: Samples that cannot be read.
    """
    found = []
    for item in judged:
        if not item.judgements:
            continue
        samples = read_samples(item.cell)
        if {"confidence", "correct"} <= samples.columns:
            sure, right = samples.numbers("confidence"), samples.numbers("correct")
            clusters = clusters_of(samples)
            found.append(Calibrated(item, calibration_error(sure, right, clusters=clusters, resamples=resamples)))
    return found


def _curves(judged: Iterable[Judged]) -> Iterator[list[Judged]]:
    """Cells that differ in their budget alone, by rising sparsity."""
    series: dict[tuple[Any, ...], list[Judged]] = {}
    for item in judged:
        spec, place, outcome = item.cell.spec, item.cell.record.placement, item.cell.record.outcome
        tested = place.role in ("method", "comparator", "control") and outcome.status == "ok"
        if tested and item.judgements and outcome.sparsity is not None:
            text = str((spec.calibration or {}).get("hash", ""))
            methods = "+".join(member.method for member in spec.stack)
            kinds = tuple(kind for member in spec.stack for kind in member.budget or {})
            key = (item.source.name, *item.grid, methods, place.config, kinds, text, spec.seed)
            series.setdefault(key, []).append(item)
    for items in series.values():
        levels = {item.cell.record.outcome.sparsity: item for item in items}
        if len(levels) >= FEWEST_LEVELS:
            yield [levels[level] for level in sorted(levels, key=lambda value: value or 0.0)]


def _knees_of(items: list[Judged], resamples: int) -> Iterator[Knee]:
    first = items[0]
    base = read_samples(first.cell)
    every = [align(read_samples(item.cell), base) for item in items]
    place = first.cell.record.placement
    for judgement in (j for j in first.judgements if j.metric.headline):
        metric = judgement.metric
        columns = []
        for samples in every:
            if isinstance(samples, str):
                raise IntegrityError(f"{place.label}: {samples}")
            weight = samples.weight(metric)
            numerator = samples.numerator(metric)
            columns.append((numerator, np.ones_like(numerator) if weight is None else weight))
        values, weights = (np.stack([column[k] for column in columns], axis=1) for k in (0, 1))
        present = np.isfinite(values).all(axis=1)
        numbers = clusters_of(base)
        if not present.any():
            continue
        found = find_breakpoint(
            [float(item.cell.record.outcome.sparsity or 0.0) for item in items],
            values[present],
            weights=weights[present],
            clusters=None if numbers is None else numbers[present],
            resamples=resamples,
        )
        label = " ".join(filter(None, ["+".join(m.method for m in first.cell.spec.stack), place.config]))
        yield Knee(label, first.cell.spec.system.ref, first.cell.spec.task.id, metric.name, found)
