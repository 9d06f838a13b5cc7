"""One setting against another over the queries of several collections, query by query.

Queries of all collections count alike, so a large collection weighs more than a small one. Work and times are one
number a cell: they have no bounds, and their ratio is the geometric mean over collections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import geometric_mean

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.findings.answer import Answer, Figure, Verdict, of_lines
from sparsebench.findings.interpolation import paired
from sparsebench.findings.results import Replicates, Results
from sparsebench.findings.rules import OverCollections, Pair, Pooled, SafeLevel, Setting
from sparsebench.stats import largest_safe
from sparsebench.stats.bounds import Bounds
from sparsebench.stats.inference import infer
from sparsebench.store import StoredCell

Array = npt.NDArray[np.float64]


def pooled(rule: Pooled, results: Results) -> Answer:
    """Every pair must be better, or no worse, and every cost within its share; one that is shown not to be refutes."""
    figures: list[Figure] = []
    for pair in rule.pairs:
        theirs, ours = _values(rule, results, [pair.theirs, pair.ours]).T
        bounds = _bounds(rule, theirs, ours)
        low, high = bounds.lower(rule.alpha), bounds.upper(rule.alpha)
        least = 0.0 if rule.asks == "better" else -rule.margin
        verdict: Verdict = "holds" if low > least else "refuted" if high < least else "underpowered"
        what = f"{pair.ours.label} less {pair.theirs.label}"
        note = f"means {ours.mean():.4f} and {theirs.mean():.4f} over {len(ours)} queries"
        figures.append(Figure(what, float((ours - theirs).mean()), low, high, "points", verdict, note))
        figures += [_cost(rule, results, pair, name, share) for name, share in rule.costs.items()]
    verdict = of_lines(figure.verdict for figure in figures if figure.verdict)
    queries = len(_values(rule, results, [rule.pairs[0].ours]))
    return _enough(rule, queries, Answer(verdict, _asked(rule), figures))


def safe_level(rule: SafeLevel, results: Results) -> Answer:
    """The least safe level must be as sparse as the rule says; a level less sparse that fails by far refutes it."""
    settings = [rule.row.model_copy(update={"budget": {rule.budget: level}}) for level in rule.levels]
    values = _values(rule, results, [rule.row, *settings])
    margin = rule.margin * float(values[:, 0].mean())
    bounds = [_bounds(rule, values[:, 0], values[:, place]) for place in range(1, values.shape[1])]
    sparsities = [_sparsity(rule, results, setting) for setting in settings]
    p = [found.p_above(-margin) for found in bounds]
    safe = largest_safe(sparsities, p, rule.alpha).level
    harmed = [s for s, found in zip(sparsities, bounds, strict=True) if found.upper(rule.alpha) < -margin]
    figures = [
        Figure.bounded(
            f"{setting.label} less {rule.row.label}",
            float((values[:, place] - values[:, 0]).mean()),
            found,
            rule.alpha,
            "points",
            "holds" if safe is not None and sparsity <= safe else "refuted" if sparsity in harmed else "underpowered",
            f"{100 * sparsity:.0f} % of terms gone",
        )
        for place, (setting, found, sparsity) in enumerate(zip(settings, bounds, sparsities, strict=True), start=1)
    ]
    verdict: Verdict = "holds" if safe is not None and safe >= rule.sparsity else "underpowered"
    if verdict != "holds" and any(sparsity <= rule.sparsity for sparsity in harmed):
        verdict = "refuted"
    at = "no level is safe" if safe is None else f"safe down to {rule.levels[sparsities.index(safe)]:g} {rule.budget}"
    said = f"{at}; the margin is {100 * margin:.2f} points, {100 * rule.sparsity:.0f} % of terms gone are asked for"
    return _enough(rule, len(values), Answer(verdict, said, figures))


def _values(rule: OverCollections, results: Results, settings: Sequence[Setting]) -> Array:
    """Values of some settings on the queries of all collections, `[queries, settings]`."""
    each = []
    for measured in rule.measured:
        rows = [results.setting(setting, measured.task) for setting in settings]
        each.append(results.sheet(measured, rows).values)
    return np.concatenate(each)


def _bounds(rule: OverCollections, theirs: Array, ours: Array) -> Bounds:
    return infer(paired(theirs, ours), resamples=rule.resamples, seed=rule.seed)[0].absolute


def _cost(rule: Pooled, results: Results, pair: Pair, name: str, share: float) -> Figure:
    ratios = []
    for measured in rule.measured:
        ours, theirs = (_spent(results.setting(s, measured.task), name) for s in (pair.ours, pair.theirs))
        ratios.append(ours / theirs if theirs else math.nan)
    value = geometric_mean(ratios) if all(ratio > 0 for ratio in ratios) else math.nan
    verdict: Verdict = "underpowered" if math.isnan(value) else "holds" if value <= share else "refuted"
    each = ", ".join(f"{measured.task} {r:.2f}" for measured, r in zip(rule.measured, ratios, strict=True))
    return Figure(f"{name}: ours over theirs", value, unit="x", verdict=verdict, note=f"at most {share:g}; {each}")


def _spent(cells: Replicates, name: str) -> float:
    """What a row spent, by the name that its record has for it.

    Raises:
        InputError: The record says nothing of it.
    """
    return float(np.mean([_recorded(cell, name) for cell in cells]))


def _recorded(cell: StoredCell, name: str) -> float:
    outcome = cell.record.outcome
    found = {**outcome.speed, **outcome.counters, "flops": outcome.flops, "bytes": outcome.bytes_per_token}.get(name)
    if found is None:
        raise InputError(f"{cell.record.placement.label} on {cell.spec.task.id} has no {name!r}")
    return float(found)


def _sparsity(rule: SafeLevel, results: Results, setting: Setting) -> float:
    """Share of the terms that are gone, over the collections."""
    cells = [cell for measured in rule.measured for cell in results.setting(setting, measured.task)]
    known = [math.nan if (s := cell.record.outcome.sparsity) is None else s for cell in cells]
    return float(np.mean(known))


def _asked(rule: Pooled) -> str:
    asked = "better" if rule.asks == "better" else f"no worse than by {100 * rule.margin:g} points"
    costs = "".join(f", {name} at most {share:g}" for name, share in rule.costs.items())
    return f"asked for: {asked}{costs}, in each of {len(rule.pairs)} comparisons"


def _enough(rule: OverCollections, queries: int, answer: Answer) -> Answer:
    if queries >= rule.queries:
        return answer
    return Answer("underpowered", f"{queries} queries; {rule.queries} are asked for", answer.figures)
