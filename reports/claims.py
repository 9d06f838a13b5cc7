"""Whether published results hold, refute or cannot decide a claim."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsebench.errors import InputError, IntegrityError, UnknownNameError
from sparsebench.identity import seed_of
from sparsebench.metrics import Metric
from sparsebench.reports import notation
from sparsebench.reports.check_result import name_of
from sparsebench.reports.claim_answer import Answer, ClaimAnswer, Part, tier_of
from sparsebench.reports.claim_cells import Found, cells_of, opponents, reduced, same_name
from sparsebench.reports.claim_language import HINT, Claim, parse
from sparsebench.reports.comparisons import Judged, Judgement, kind_of
from sparsebench.reports.pairing import align, clusters_of, metric_mismatch, task_mismatch, unusable
from sparsebench.reports.rules import conclusions
from sparsebench.reports.sources import Cells, Samples, Source, open_sources, read_samples
from sparsebench.reports.verdicts import judge
from sparsebench.stats import holm, signal
from sparsebench.stats.limits import Limit, loss_against
from sparsebench.store import StoredCell


def ask(sentence: str, *results_folders: str | os.PathLike[str], alpha: float | None = None) -> ClaimAnswer:
    """Ask results about a claim.

    Args:
        sentence: In the grammar of `claim_language`.
        results_folders: Results folders.
        alpha: Level of each one-sided test; the suite's unless told.

    Raises:
        InputError: The sentence says nothing that is understood, or nothing of it was measured.
    """
    return answer(parse(sentence), open_sources(results_folders), alpha)


def answer(claim: Claim, sources: Sequence[Source], alpha: float | None = None) -> ClaimAnswer:
    """Ask opened results about a claim; see `ask`."""
    found = cells_of(claim, sources)
    level = alpha if alpha is not None else max(conclusions(source).alpha for source, _ in found)
    parts = tuple(_parts(claim, found, sources, level))
    if not parts:
        raise InputError(f"claim {claim.sentence!r}: no cell has {claim.what or claim.measure!r}", HINT)
    refuted = holm([part.p_refuted for part in parts])
    outcome: Answer = "UNDERPOWERED"
    if all(part.answer == "HOLDS" for part in parts):
        outcome = "HOLDS"
    elif any(p <= level and part.answer == "REFUTED" for p, part in zip(refuted, parts, strict=True)):
        outcome = "REFUTED"
    lacking = [p.n_needed - (p.n or 0) for p in parts if p.answer == "UNDERPOWERED" and p.n_needed is not None]
    records = [cell.record.system for _, cell in found]
    return ClaimAnswer(
        answer=outcome,
        claim=claim,
        parts=parts,
        alpha=level,
        n_still_needed=max(0, *lacking) if outcome == "UNDERPOWERED" and lacking else None,
        tier=tier_of(record.get("parameters") for record in records),
        models=tuple(sorted({notation.model_name(cell.spec.system.ref) for _, cell in found})),
    )


Counts = dict[str, tuple[float | None, float | None]]


def _parts(claim: Claim, found: list[Found], sources: Sequence[Source], alpha: float) -> Iterator[Part]:
    if claim.measure != "loss":
        for _, cell in found:
            yield _counted(claim, cell)
        return
    everything, meant = Cells(sources), _meant(claim, found)
    judged = {(item.source.name, item.cell.id): item for item in judge(reduced(found, sources))}
    for source, cell in found:
        item = judged[source.name, cell.id]
        if (source.name, cell.id) not in meant:
            continue
        if not meant[source.name, cell.id]:
            yield _undecided(claim, cell, "", item.problem or "it has no such metric")
        for metric in meant[source.name, cell.id]:
            for other in opponents(claim, source, cell, everything):
                yield _loss_part(claim, cell, other, metric, _judgement(item, metric), alpha)


def _judgement(item: Judged, metric: Metric) -> Judgement | None:
    return next((j for j in item.judgements if j.metric.name == metric.name), None)


def _meant(claim: Claim, found: list[Found]) -> dict[tuple[str, str], list[Metric]]:
    """The metrics that a claim means, of each cell.

    Raises:
        UnknownNameError: No cell has the metric that is named.
    """
    known = {(s.name, c.id): [m.metric for m in c.record.outcome.metrics] for s, c in found}
    if claim.what and not any(same_name(claim.what, c.spec.task.id) for _, c in found):
        meant = {key: [m for m in metrics if same_name(m.name, claim.what)] for key, metrics in known.items()}
        if not any(meant.values()):
            names = {m.name for metrics in known.values() for m in metrics}
            raise UnknownNameError("metric of these tasks", claim.what, names)
        return {key: metrics for key, metrics in meant.items() if metrics or not known[key]}
    return {key: [m for m in metrics if m.headline] for key, metrics in known.items()}


def _undecided(claim: Claim, cell: StoredCell, measure: str, why: str) -> Part:
    limit = claim.limit / 100 if claim.points else claim.limit
    return Part(
        "UNDERPOWERED",
        cell.id,
        name_of(cell),
        measure,
        None,
        None,
        None,
        None,
        None,
        limit,
        claim.points,
        1.0,
        1.0,
        why=why,
    )


def _loss_part(
    claim: Claim, cell: StoredCell, other: StoredCell | str, metric: Metric, judgement: Judgement | None, alpha: float
) -> Part:
    if isinstance(other, str):
        return _undecided(claim, cell, metric.name, other)
    if judgement is not None and judgement.verdict in ("no signal", "not exercised"):
        return _undecided(claim, cell, metric.name, f"{judgement.verdict}: {judgement.reason}")
    if claim.points and metric.transform == "exp":
        raise InputError(f"claim {claim.sentence!r}: {metric.name} has no points", "say its loss in per cent")
    paired = _paired(cell, other, metric)
    if isinstance(paired, str):
        return _undecided(claim, cell, metric.name, paired)
    ours, theirs = paired
    size = claim.limit / 100 if claim.points else claim.limit
    # "Better than" has no size: a baseline of 0 has no fractions.
    points = claim.points or (size == 0 and metric.transform == "identity")
    weights = theirs.weight(metric), ours.weight(metric)
    clusters = clusters_of(theirs)
    with np.errstate(all="ignore"):
        loss = loss_against(
            Limit(size, "points" if points else "relative"),
            theirs.numerator(metric),
            ours.numerator(metric),
            weight_dense=weights[0],
            weight_sparse=weights[1],
            clusters=clusters,
            kind=kind_of(metric, weights[0]),
            transform=metric.transform,
            higher_is_better=metric.higher_is_better,
            alpha=alpha,
            seed=seed_of("claim", cell.id, other.id, metric.name),
        )
    holds, refuted = (loss.p_below, loss.p_above) if claim.direction == "below" else (loss.p_above, loss.p_below)
    noise = judgement.noise if judgement is not None else None
    unit = 1.0 if points else abs(loss.dense)
    why = _in_the_way(size * unit, loss.loss * unit, noise, loss.unpaired, judgement)
    room = _room(metric, theirs, weights[0], size * unit) if claim.direction == "below" else True
    part: Answer = "UNDERPOWERED"
    if not why and holds <= alpha and room:
        part = "HOLDS"
    elif not why and refuted <= alpha:
        part = "REFUTED"
    elif not why and not room:
        why = "the baseline is above chance by less than the limit, so a collapse could hide in it"
    return Part(
        part,
        cell.id,
        name_of(cell),
        metric.name,
        loss.sparse,
        loss.dense,
        loss.loss,
        loss.low,
        loss.high,
        size,
        points,
        1.0 if why else holds,
        1.0 if why else refuted,
        loss.n,
        loss.needed if part == "UNDERPOWERED" and not why else None,
        why,
        _remark(cell, other),
    )


def _paired(cell: StoredCell, other: StoredCell, metric: Metric) -> tuple[Samples, Samples] | str:
    """The samples of both, in one order, or why they are not to be compared."""
    mismatch = task_mismatch(cell.spec.task, other.spec.task)
    theirs = next((m.metric for m in other.record.outcome.metrics if m.metric.name == metric.name), None)
    if mismatch or theirs is None:
        return mismatch or f"{name_of(other)} has no metric {metric.name}"
    wrong = metric_mismatch(metric, theirs)
    if wrong:
        return wrong
    try:
        base = read_samples(other)
        ours = align(read_samples(cell), base)
        if isinstance(ours, str):
            return ours
        for samples in (ours, base):
            unfit = unusable(metric, samples.numerator(metric), samples.weight(metric))
            if unfit:
                return unfit
    except IntegrityError as error:
        return error.message
    return ours, base


def _in_the_way(limit: float, loss: float, noise: float | None, unpaired: int, judgement: Judgement | None) -> str:
    """What keeps any answer from being given; losses in the metric's units."""
    if unpaired:
        return f"samples with a value from one system only: {unpaired}"
    if judgement is not None and judgement.reason.startswith("fewer than"):
        return judgement.reason
    if math.isnan(loss):
        return "a value is not finite"
    if noise is not None and 0 < limit < 2 * noise:
        return f"the limit {limit:.3g} is below twice the A/A noise {noise:.3g}"
    if noise is not None and abs(loss - limit) <= noise:
        return f"the loss is as near to the limit as the A/A noise, {noise:.3g}"
    return ""


def _room(metric: Metric, samples: Samples, weight: Any, size: float) -> bool:
    """Whether the baseline is above chance by more than the limit."""
    if metric.chance is None or size <= 0:
        return True
    return signal(
        samples.numerator(metric),
        metric.chance + (size if metric.higher_is_better else -size),
        weights=weight,
        clusters=clusters_of(samples),
        kind=kind_of(metric, weight),
        transform=metric.transform,
        higher_is_better=metric.higher_is_better,
    ).present


def _remark(cell: StoredCell, other: StoredCell) -> str:
    """Realised sparsities of two methods, where they are not the same."""
    ours, theirs = cell.record.outcome.sparsity, other.record.outcome.sparsity
    if not other.spec.stack or ours is None or theirs is None or abs(ours - theirs) <= 0.002:
        return ""
    return f"realised sparsity {notation.percent(ours)} against {notation.percent(theirs)}"


def _counted(claim: Claim, cell: StoredCell) -> Part:
    """A claim about what was counted: it is exact."""
    outcome = cell.record.outcome
    pairs: Counts = {
        "flops": (outcome.flops, outcome.flops_dense),
        "bytes": (outcome.bytes_per_token, outcome.bytes_per_token_dense),
        "sparsity": (outcome.sparsity, 1.0),
    }
    part, whole = pairs[claim.measure]
    if part is None or not whole:
        return _undecided(claim, cell, claim.measure, f"its {claim.measure} were not counted")
    value = part / whole
    close = math.isclose(value, claim.limit, rel_tol=1e-9)
    holds = close or (value < claim.limit if claim.direction == "below" else value > claim.limit)
    p = 0.0 if holds else 1.0
    return Part(
        "HOLDS" if holds else "REFUTED",
        cell.id,
        name_of(cell),
        claim.measure,
        value,
        None,
        value,
        None,
        None,
        claim.limit,
        False,
        p,
        1.0 - p,
    )
