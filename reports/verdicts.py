"""What may be concluded from each comparison, with the corrections that many tests need.

Headline metrics of a grid's methods on one task are a gate, in which the chance of any wrong verdict of a kind is at
most alpha. Losses and gains are corrected by Holm over all rows. Whether quality is kept is asked of each method from
its least sparse level up, with Holm between methods (`stats.holm_of_sequences`): a level is not paid for by the
hopeless ones above it. All other rows (further metrics, controls, bounds) are exploratory and corrected by Benjamini
and Hochberg. Noise, a baseline without signal, and methods that acted on nothing come before either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from sparsebench.records import Outcome
from sparsebench.reports.comparisons import Judged, Judgement, compare_cells
from sparsebench.reports.processes import uncollected
from sparsebench.reports.realised_budget import not_met
from sparsebench.reports.sequences import Levels, sequences
from sparsebench.reports.sources import Source
from sparsebench.stats import Comparison, benjamini_hochberg, holm, holm_of_sequences
from sparsebench.stats.verdict import Evidence, decide

FEWEST_EXERCISED = 16
"""Decode queries a sample below which a method that acts in decode alone is not exercised."""
FEWEST_FOR_VERDICT = 64
"""Decode queries a sample below which it gets no verdict."""
TESTED_ROLES = ("method", "comparator")
"""Roles whose headline metrics make the gate; controls and bounds claim nothing."""


@uncollected()
def judge(sources: Sequence[Source], *, changes: int = 0) -> list[Judged]:
    """Every readable cell of some sources with its verdicts, in their order.

    Args:
        sources: Opened results folders; a baseline is looked for in a cell's own source first.
        changes: How many changed samples of each cell to keep.

    Raises:
        IntegrityError: A suite whose rules for conclusions are wrong.
    """
    judged = compare_cells(sources, changes=changes)
    noise = noise_of(judged)
    families: dict[tuple[bool, tuple[object, ...]], list[tuple[Judged, Judgement]]] = defaultdict(list)
    for item in judged:
        for judgement in item.judgements:
            judgement.noise = noise.get((item.cell.record.placement.baseline, judgement.metric.name))
            settled = _before_any_test(item, judgement)
            if settled:
                judgement.verdict, judgement.reason = settled
            else:
                gate = judgement.metric.headline and item.cell.record.placement.role in TESTED_ROLES
                families[gate, item.grid].append((item, judgement))
    for (gate, _), members in families.items():
        correct([judgement for _, judgement in members], gate=gate, levels=sequences(members) if gate else None)
    for item in judged:
        remarks = [_other_dtype(item), not_met(item.cell.spec, item.cell.record), _shortened(item.cell.record.outcome)]
        for judgement in item.judgements:
            judgement.reason = "; ".join(part for part in (judgement.reason, *remarks) if part)
    return judged


def _other_dtype(item: Judged) -> str:
    """What is said of a row whose grid has its model in another dtype only to compare it with."""
    if item.baseline is None or item.is_baseline or item.cell.record.placement.role == "noise":
        return ""
    ours, theirs = item.cell.spec.system, item.baseline.spec.system
    if ours.fingerprint != theirs.fingerprint or ours.dtype == theirs.dtype:
        return ""
    return f"its baseline ran in {theirs.dtype}, it in {ours.dtype}: the change holds that of the dtype"


def _shortened(outcome: Outcome) -> str:
    """What is said of a row of texts that are longer than its model reads."""
    cut = int(outcome.facts.get("truncated", 0))
    return f"{cut:,} texts are longer than the model reads, and were cut from the left" if cut else ""


def noise_of(judged: Sequence[Judged]) -> dict[tuple[str | None, str], float]:
    """The largest absolute change that running a baseline another way made, by baseline and metric."""
    noise: dict[tuple[str | None, str], float] = {}
    for item in judged:
        if item.cell.record.placement.role == "noise":
            for judgement in item.judgements:
                if judgement.comparison and math.isfinite(judgement.comparison.delta):
                    key = (item.cell.record.placement.baseline, judgement.metric.name)
                    noise[key] = max(noise.get(key, 0.0), abs(judgement.comparison.delta))
    return noise


def _before_any_test(item: Judged, judgement: Judgement) -> tuple[str, str] | None:
    """The verdict and reason of a row that no test is asked about."""
    comparison, outcome = judgement.comparison, item.cell.record.outcome
    if item.is_baseline:
        return "baseline", ""
    if item.cell.record.placement.role == "noise":
        return "noise", judgement.obstacle or "the baseline, run another way"
    unexercised = not_exercised(outcome)
    if unexercised:
        return "not exercised", unexercised
    if comparison is None:
        return "inconclusive", judgement.obstacle
    if judgement.above_chance is False:
        return "no signal", f"the baseline's {comparison.dense:.3g} is not above chance ({judgement.metric.chance:.3g})"
    if outcome.phase == "decode" and (outcome.decode_queries or 0) < FEWEST_FOR_VERDICT:
        counted = "" if outcome.decode_queries is not None else "; they were not counted"
        return "inconclusive", f"fewer than {FEWEST_FOR_VERDICT} decode queries a sample{counted}"
    return None


def not_exercised(outcome: Outcome) -> str | None:
    """Why a method was not exercised; None when it was."""
    if not outcome.exercised:
        return "the method acted on nothing that feeds a scored token"
    queries = outcome.decode_queries
    if outcome.phase == "decode" and queries is not None and queries < FEWEST_EXERCISED:
        return f"{queries:.3g} decode queries a sample; at least {FEWEST_EXERCISED} are needed"
    return None


def evidence_of(judgement: Judgement, comparison: Comparison) -> Evidence:
    """What the verdict of a comparison rests on, noise and signal included."""
    loss = -comparison.delta if judgement.metric.higher_is_better else comparison.delta
    return Evidence(
        n=comparison.n,
        clusters=comparison.n_clusters,
        unpaired=comparison.unpaired,
        finite=math.isfinite(comparison.dense) and math.isfinite(comparison.sparse),
        loss=loss,
        loss_bound=comparison.loss_bound,
        p_regression=_or_one(comparison.p_regression),
        p_improvement=_or_one(comparison.p_improvement),
        alpha=judgement.alpha,
        margin=comparison.margin,
        mde=comparison.mde,
        required_n=comparison.required_n,
        noise=judgement.noise,
        above_chance=judgement.above_chance,
        room=judgement.room,
    )


def correct(members: list[Judgement], *, gate: bool, levels: Sequence[Levels] | None = None) -> None:
    """Correct the p values of a family of tests, and decide each by the corrected ones.

    Args:
        members: The rows.
        gate: Whether they are a gate (Holm) or exploratory (Benjamini and Hochberg).
        levels: The same rows as sequences, for whether quality is kept; each row by itself unless told.
    """
    tests = [(m, m.comparison, evidence_of(m, m.comparison)) for m in members if m.comparison is not None]
    adjust, name = (holm, "Holm") if gate else (benjamini_hochberg, "Benjamini-Hochberg")
    worse = adjust([e.p_regression for _, _, e in tests])
    better = adjust([e.p_improvement for _, _, e in tests])
    for judgement, comparison, evidence in tests:
        judgement.p_noninferior = comparison.p_noninferior if _could_be_noninferior(evidence) else math.nan
        judgement.family = f"{name}, {len(tests)} test{'s' if len(tests) > 1 else ''}"
    if levels is None:
        kept = adjust([judgement.p_noninferior for judgement, _, _ in tests])
        for (judgement, _, _), p in zip(tests, kept, strict=True):
            judgement.p_kept, judgement.family_of_kept = float(p), judgement.family
    else:
        _correct_in_order(levels)
    for k, (judgement, _, evidence) in enumerate(tests):
        judgement.p_adjusted = min(1.0, 2 * min(float(worse[k]), float(better[k])))
        corrected = evidence._replace(p_regression=float(worse[k]), p_improvement=float(better[k]))
        judgement.verdict, judgement.reason = _decide(evidence, corrected, judgement)


def _correct_in_order(levels: Sequence[Levels]) -> None:
    """Correct the p values of "quality is kept"; a level's is the largest of its seeds'."""
    largest = [[max((row.p_noninferior for row in rows), key=_or_one) for rows in sequence] for sequence in levels]
    family = f"in order, {len(levels)} sequence{'s' if len(levels) > 1 else ''}"
    for sequence, adjusted in zip(levels, holm_of_sequences(largest), strict=True):
        failed = False
        for rows, p in zip(sequence, adjusted, strict=True):
            for row in rows:
                row.p_kept, row.family_of_kept = p, f"{family}; a less sparse level is not shown" if failed else family
            failed |= not p <= rows[0].alpha


def _could_be_noninferior(evidence: Evidence) -> bool:
    """Whether anything but the bound of the loss stands in the way."""
    return decide(evidence._replace(p_improvement=1.0, loss_bound=-math.inf))[0] == "non-inferior"


def _decide(alone: Evidence, corrected: Evidence, judgement: Judgement) -> tuple[str, str]:
    """The verdict by corrected p values; where the correction changed it, the reason says so."""
    verdict, reason = decide(corrected)
    family = judgement.family
    if verdict == "non-inferior" and not judgement.p_kept <= corrected.alpha:
        verdict = decide(corrected._replace(loss_bound=math.inf))[0]
        reason, family = "the loss is significant", judgement.family_of_kept
    by_itself = decide(alone)[0]
    if by_itself == verdict:
        return verdict, reason
    changed = f"{by_itself} by itself, but not after correction ({family})"
    return verdict, changed if verdict == "inconclusive" else f"{reason}; {changed}"


def _or_one(p: float) -> float:
    return 1.0 if math.isnan(p) else p
