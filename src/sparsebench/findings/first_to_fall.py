"""Which falls first as a model becomes sparser: knowledge or perplexity.

The largest safe level is the last one before the first at which the upper bound of the loss exceeds the limit. In each
joint draw of questions and windows both are found anew, with bounds of that draw. A bound may also exceed its limit for
want of questions: so the estimates themselves, draw by draw, must say the same, or the finding is underpowered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from sparsebench.findings.answer import Answer, Figure, Verdict
from sparsebench.findings.results import Results, Sheet
from sparsebench.findings.rules import FirstToFall, Measured, Row
from sparsebench.stats.clusters import linearise
from sparsebench.stats.paired import PairedSamples
from sparsebench.stats.resample import bootstrap
from sparsebench.stats.scale import DIFFERENCE, RELATIVE, Scale

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """Losses at each level, first on the samples themselves and then in each draw, `[1 + draws, levels]`.

    Attributes:
        estimates: The losses.
        upper: Their upper bounds.
        limit: The loss that is still safe.
    """

    estimates: Array
    upper: Array
    limit: float


@dataclass(frozen=True)
class _Shares:
    row: Row
    perplexity: float
    knowledge: float
    bounds: float
    estimates: float
    verdict: Verdict


def answer(rule: FirstToFall, results: Results) -> Answer:
    """It holds if it is so of enough methods; it is refuted if so many are shown to be otherwise that it cannot."""
    shares = [_method(rule, results, row, place) for place, row in enumerate(rule.methods)]
    holding = sum(share.verdict == "holds" for share in shares)
    refuted = sum(share.verdict == "refuted" for share in shares)
    figures = [
        Figure(
            f"{s.row.label}: draws in which knowledge falls first",
            s.bounds,
            verdict=s.verdict,
            note=f"knowledge safe to {s.knowledge:g}, perplexity to {s.perplexity:g}; by estimates {s.estimates:.3f}",
        )
        for s in shares
    ]
    verdict: Verdict = "underpowered"
    if holding >= rule.required:
        verdict = "holds"
    elif refuted > len(rule.methods) - rule.required:
        verdict = "refuted"
    return Answer(verdict, f"it holds of {holding} of {len(shares)} methods; {rule.required} are asked for", figures)


def _method(rule: FirstToFall, results: Results, row: Row, place: int) -> _Shares:
    tasks = [measured.task for measured in (rule.knowledge, *rule.perplexities)]
    each = [set(results.levels(row, task)) for task in tasks]
    levels = sorted(set.intersection(*each))
    seed = rule.seed + 100 * place
    known = losses(rule, results, row, levels, rule.knowledge, RELATIVE, rule.knowledge_loss, seed)
    texts = [
        losses(rule, results, row, levels, measured, DIFFERENCE, math.log(rule.perplexity_ratio), seed + 1 + k)
        for k, measured in enumerate(rule.perplexities)
    ]
    by_bounds = safe_levels([known], True), safe_levels(texts, True)
    by_estimates = safe_levels([known], False), safe_levels(texts, False)
    share = float(np.mean(by_bounds[0][1:] < by_bounds[1][1:]))
    estimated = float(np.mean(by_estimates[0][1:] < by_estimates[1][1:]))
    verdict: Verdict = "underpowered"
    if min(share, estimated) >= rule.share:
        verdict = "holds"
    elif max(share, estimated) <= 1 - rule.share:
        verdict = "refuted"
    safe = [0.0, *levels]
    return _Shares(row, safe[by_bounds[1][0]], safe[by_bounds[0][0]], share, estimated, verdict)


def losses(
    rule: FirstToFall,
    results: Results,
    row: Row,
    levels: Sequence[float],
    measured: Measured,
    scale: Scale,
    limit: float,
    seed: int,
) -> Losses:
    """Losses of a row against dense; positive is worse, whatever the metric's direction."""
    curve = results.levels(row, measured.task)
    sheet = results.sheet(measured, [results.dense(measured.task), *(curve[level] for level in levels)])
    samples = _paired(sheet)
    sign = -1.0 if sheet.metric.higher_is_better else 1.0
    linear = linearise(samples.sums, scale)
    (drawn,) = bootstrap(samples.sums, [scale], resamples=rule.resamples, seed=seed)
    quantile = special.stdtrit(np.maximum(linear.df, 1e-9), 1 - rule.alpha)
    estimates = sign * np.vstack([drawn.estimate, drawn.estimates])
    errors = np.vstack([np.maximum(linear.error, drawn.error), drawn.errors])
    upper = estimates + quantile * errors
    for level in np.flatnonzero(samples.rarely_changed):
        # Of next to nothing that changed there is no spread to speak of: the exact bound stands in for it.
        rare = samples.rare(int(level))
        least = rare.upper(rule.alpha) if sign > 0 else -rare.lower(rule.alpha)
        upper[:, level] = np.maximum(
            upper[:, level], scale.from_difference(least, float(samples.sums.dense_mean[level]))
        )
    return Losses(estimates, upper, limit)


def _paired(sheet: Sheet) -> PairedSamples:
    """The first row of a sheet as the baseline of all others."""
    values, weights = sheet.values[:, 1:], sheet.weights[:, 1:]
    return PairedSamples(
        np.broadcast_to(sheet.values[:, :1], values.shape),
        values,
        np.broadcast_to(sheet.weights[:, :1], weights.shape),
        weights,
        sheet.clusters.astype(np.intp),
        int(sheet.clusters.max()) + 1,
        "binary" if sheet.metric.kind == "binary" and (sheet.weights == 1).all() else "continuous",
        "identity",
    )


def safe_levels(all_losses: Sequence[Losses], bounded: bool) -> npt.NDArray[np.intp]:
    """How many levels, from the least sparse up, are safe on all texts at once, `[1 + draws]`."""
    safe = np.ones_like(all_losses[0].estimates, dtype=bool)
    for each in all_losses:
        safe &= (each.upper if bounded else each.estimates) <= each.limit
    return np.asarray(np.cumprod(safe, axis=1).sum(axis=1), dtype=np.intp)
