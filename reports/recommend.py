"""Which methods keep a loss below a limit, ranked by what a request would cost with them.

The guarantee is simultaneous: the chance that any method in the list loses more than the limit on any of the tasks is
at most alpha. "On all tasks" is an intersection-union test for each level of a method, levels are asked in order from
the least sparse, and methods share alpha by Holm (`stats.holm_of_sequences`).

The ranking is a prediction. A request is priced by the cost model: in each phase the larger of its FLOPs over the
machine's FLOPs for each byte of bandwidth, and of its bytes. That is what an ideal kernel would need, and no speed.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sparsebench.cost import Cost, PhaseCosts, Request, dense_cost
from sparsebench.errors import InputError, SparseBenchError, UnknownNameError
from sparsebench.identity import canonical
from sparsebench.reports import notation
from sparsebench.reports.comparisons import Judged, Judgement
from sparsebench.reports.rules import with_largest_loss
from sparsebench.reports.runs import whole_runs
from sparsebench.reports.sequences import level
from sparsebench.reports.sources import open_sources
from sparsebench.reports.verdicts import TESTED_ROLES, judge
from sparsebench.stats import holm_of_sequences, intersection_union

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

BALANCE = 300.0
"""FLOPs for each byte of memory bandwidth, of a large accelerator in 16 bits (989 TFLOP/s over 3.35 TB/s)."""
INTEGER_BYTES = {"int8": 1.0, "int4": 0.5625}
"""Bytes of a weight when all are quantised; of int4 with a 16-bit scale for 32 weights."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        request: Prompt, answer and batch.
        max_loss: Largest acceptable loss, as a fraction of the baseline's value.
        model: Part of the model's name; empty where the results have one only.
        balance: FLOPs for each byte of bandwidth of the machine.
        alpha: Chance that anything in the list is wrong.
    """

    request: Request
    max_loss: float
    model: str = ""
    balance: float = BALANCE
    alpha: float = 0.05


@dataclass
class Candidate:
    """One method at one budget.

    Attributes:
        label: As printed.
        config: Its knobs, where they are not the defaults.
        rows: Its cells with the judgements that count, over tasks and seeds.
        missing: Tasks on which it was not measured.
        p: p value of "it loses more than the limit on some task"; corrected after `rank`.
        worst: Largest upper bound of its loss over the tasks, as a fraction, at confidence 1 - alpha by itself.
        worst_on: The task of that bound.
        loss: The observed loss there.
        cost: Predicted ideal cost of the request over the dense model's; None where it is not predicted.
        speed: Measured speeds of executed rows.
        mode: `executed` where every row is.
    """

    label: str
    config: str
    rows: list[tuple[Judged, Judgement]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    p: float = 1.0
    worst: float = math.inf
    worst_on: str = ""
    loss: float = math.nan
    cost: float | None = None
    speed: dict[str, float] = field(default_factory=dict)
    mode: str = "simulated"


@dataclass(frozen=True)
class Recommendation:
    """The answer.

    Attributes:
        wanted: What was asked for.
        model: The model's reference.
        tasks: Tasks that count: those with signal.
        kept: Candidates that are shown to lose at most the limit on all of them, cheapest first.
        open: Candidates that are neither shown to nor shown not to.
        lost: How many lose more.
        integers: Ideal cost of the dense model with all weights in 8 or 4 bits, over 16; their loss is not known here.
        advice: What follows.
    """

    wanted: Wanted
    model: str
    tasks: tuple[str, ...]
    kept: tuple[Candidate, ...]
    open: tuple[Candidate, ...]
    lost: int
    integers: dict[str, float]
    advice: str


def recommend(wanted: Wanted, *results_folders: str | os.PathLike[str]) -> Recommendation:
    """Rank the methods of some results folders.

    Raises:
        InputError: No such model, or nothing was measured on it.
        MissingError: The model's configuration, from which costs are predicted, is not to be had.
    """
    if not 0 < wanted.max_loss < 1:
        raise InputError(f"a largest loss of {wanted.max_loss}", "it should be between 0 and 1: 0.05 or 5%")
    request = wanted.request
    if request.prompt < 0 or request.answer < 0 or request.prompt + request.answer < 1 or request.batch < 1:
        raise InputError(
            "a request has some tokens, and a batch of at least 1", "--context 4096 --decode 256 --batch 1"
        )
    from sparsebench.systems.sizes import weightless

    judged = [
        j for j in judge(with_largest_loss(open_sources(results_folders), wanted.max_loss, wanted.alpha)) if _is_lm(j)
    ]
    whole = {(source.name, cell.id) for source, cell in whole_runs((j.source, j.cell) for j in judged)}
    judged = [j for j in judged if (j.source.name, j.cell.id) in whole]
    ref = _model(judged, wanted.model)
    mine = [j for j in judged if j.cell.spec.system.ref == ref and not j.is_baseline]
    tested = [j for j in mine if j.cell.record.placement.role in TESTED_ROLES]
    tasks = _tasks(tested)
    system = weightless(ref)
    ordered = _candidates(tested, tasks)
    candidates = [candidate for sequence in ordered for candidate in sequence]
    for candidate in candidates:
        _measure(candidate, tasks)
        candidate.cost = _cost(candidate, system, wanted)
    adjusted = holm_of_sequences([[candidate.p for candidate in sequence] for sequence in ordered])
    for candidate, p in zip(candidates, (p for sequence in adjusted for p in sequence), strict=True):
        candidate.p = p
    kept = sorted((c for c in candidates if c.p <= wanted.alpha), key=_order)
    lost = [c for c in candidates if c.p > wanted.alpha and _shown_to_lose(c)]
    open_ = [c for c in candidates if c.p > wanted.alpha and not _shown_to_lose(c)]
    dense = dense_cost(system.shape, request)
    integers = {
        name: _ideal(dense_cost(replace(system.shape, bytes_per_weight=size), request), wanted.balance)
        / _ideal(dense, wanted.balance)
        for name, size in INTEGER_BYTES.items()
    }
    advice = _advice(kept, integers, wanted)
    return Recommendation(
        wanted, ref, tuple(tasks), tuple(kept), tuple(sorted(open_, key=_order)), len(lost), integers, advice
    )


def _is_lm(item: Judged) -> bool:
    return item.cell.spec.system.kind == "causal-lm"


def _model(judged: Sequence[Judged], name: str) -> str:
    references = sorted({j.cell.spec.system.ref for j in judged})
    found = [ref for ref in references if name.casefold() in ref.casefold()]
    if not references:
        raise InputError("these results have no language model")
    if not found:
        raise UnknownNameError("model of these results", name, map(notation.model_name, references))
    if len(found) > 1:
        names = ", ".join(map(notation.model_name, found))
        raise InputError(f"{'several models' if not name else f'several models have {name!r} in their names'}: {names}")
    return found[0]


def _tasks(tested: Sequence[Judged]) -> list[str]:
    """Tasks with signal.

    Raises:
        InputError: There is none.
    """
    signal: dict[str, bool] = defaultdict(bool)
    for item in tested:
        for judgement in item.judgements:
            if judgement.metric.headline:
                signal[item.cell.spec.task.id] |= judgement.above_chance is not False
    tasks = sorted(task for task, there in signal.items() if there)
    if not tasks:
        raise InputError("nothing was measured on this model that carries signal")
    return tasks


def _candidates(tested: Sequence[Judged], tasks: Sequence[str]) -> list[list[Candidate]]:
    """Methods as sequences of levels, from the least sparse."""
    found: dict[str, dict[tuple[float, ...], Candidate]] = defaultdict(dict)
    for item in tested:
        if item.cell.spec.task.id not in tasks:
            continue
        spec, place = item.cell.spec, item.cell.record.placement
        stack = [[m.method, m.version, m.knobs, sorted(m.budget or {})] for m in spec.stack]
        series = canonical([spec.system.dtype, stack, spec.mode, spec.calibration])
        candidate = found[series].setdefault(level(item), Candidate(place.label, place.config))
        headline = [judgement for judgement in item.judgements if judgement.metric.headline]
        candidate.rows += [(item, judgement) for judgement in headline]
    return [[levels[at] for at in sorted(levels)] for _, levels in sorted(found.items())]


def _measure(candidate: Candidate, tasks: Sequence[str]) -> None:
    """Sum up a candidate's losses over its tasks and seeds."""
    measured = {item.cell.spec.task.id for item, _ in candidate.rows}
    candidate.missing = [task for task in tasks if task not in measured]
    ps = [judgement.p_noninferior for _, judgement in candidate.rows]
    candidate.p = 1.0 if candidate.missing else intersection_union(ps)
    losses = []
    for item, judgement in candidate.rows:
        c = judgement.comparison
        if c is not None and c.dense and math.isfinite(c.dense):
            sign = -1.0 if judgement.metric.higher_is_better else 1.0
            losses.append((c.loss_bound / abs(c.dense), item.cell.spec.task.id, sign * c.relative))
    if losses:
        candidate.worst, candidate.worst_on, candidate.loss = max(losses)
    modes = {item.cell.spec.mode for item, _ in candidate.rows}
    candidate.mode = "executed" if modes == {"executed"} else "simulated"
    if candidate.mode == "executed":
        candidate.speed = {k: v for item, _ in candidate.rows for k, v in item.cell.record.outcome.speed.items()}


def _shown_to_lose(candidate: Candidate) -> bool:
    return any(judgement.verdict == "regressed" for _, judgement in candidate.rows)


def _cost(candidate: Candidate, system: CausalLM, wanted: Wanted) -> float | None:
    """Ideal cost of the request over the dense model's; None for stacks and where a method cannot predict it."""
    from sparsebench.runner import stack_of

    try:
        stack = stack_of(candidate.rows[0][0].cell.spec) if candidate.rows else []
        if len(stack) != 1:
            return None
        cost = stack[0].adapter.cost(system, wanted.request, stack[0].budget)
    except SparseBenchError:
        return None  # a plugin that is not installed, or knobs of another version
    dense = dense_cost(system.shape, wanted.request)
    return _ideal(cost, wanted.balance) / _ideal(dense, wanted.balance)


def _ideal(cost: PhaseCosts, balance: float) -> float:
    """The roofline of a request, in bytes of bandwidth."""

    def phase(part: Cost) -> float:
        return max(part.flops / balance, part.bytes)

    return phase(cost.prefill) + phase(cost.decode)


def _order(candidate: Candidate) -> tuple[Any, ...]:
    cost = candidate.cost if candidate.cost is not None else math.inf
    return cost, candidate.worst, candidate.label, candidate.config


def _advice(kept: Sequence[Candidate], integers: dict[str, float], wanted: Wanted) -> str:
    limit = notation.percent(wanted.max_loss)
    smaller = [c for c in kept if c.cost is not None and c.cost < 1]
    eight = integers["int8"]
    quantise = f"int8 weights would cost {notation.ratio(eight)} of dense; their loss has to be measured on these tasks"
    if not kept:
        return (
            f"Nothing here is shown to lose at most {limit} on all tasks: dense is better, or quantising. {quantise}."
        )
    if not smaller:
        return f"What keeps quality would save nothing on this request: dense is better, or quantising. {quantise}."
    best, executed = smaller[0], [c for c in smaller if c.mode == "executed"]
    said = f"{best.label} would cost {notation.ratio(best.cost)} of dense on this request, with ideal kernels."
    if not executed:
        said += " Nothing here was executed, so no speed is known: until one is, dense is the safe choice."
    else:
        fast = executed[0]
        shown = ", ".join(f"{name} {notation.number(value)}" for name, value in sorted(fast.speed.items()))
        said += f" Executed: {fast.label} ({shown or 'no speed was recorded'})."
    quantised = all(set(m.budget or {}) == {"bits"} for m in best.rows[0][0].cell.spec.stack)
    if eight < (best.cost or 1) and not quantised:
        return f"int8 is better, if its loss is small enough: {quantise}. {said}"
    return said


def text(found: Recommendation) -> str:
    """For a terminal."""
    wanted = found.wanted
    request = wanted.request
    lines = [
        f"{notation.model_name(found.model)}: {request.prompt:,} tokens of context, {request.answer:,} of answer, "
        f"batch {request.batch}; at most {notation.percent(wanted.max_loss)} lost on {', '.join(found.tasks)}",
        "",
    ]
    if found.kept:
        lines += [f"  {'':<28}{'ideal cost':>10}  {'largest loss':<30}  mode"]
    for candidate in found.kept:
        name = notation.printable(f"{candidate.label} {candidate.config}".strip(), 28)
        bound = f"{_percent(candidate.loss)}, below {_percent(candidate.worst)} ({candidate.worst_on})"
        lines.append(f"  {name:<28}{notation.ratio(candidate.cost) or 'unknown':>10}  {bound:<30}  {candidate.mode}")
    for name, ratio in found.integers.items():
        lines.append(f"  {'dense in ' + name:<28}{notation.ratio(ratio):>10}  {'not measured':<30}  predicted")
    lines += ["", f"  {found.advice}", ""]
    if found.open:
        names = ", ".join(c.label + (" (not on all tasks)" if c.missing else "") for c in found.open[:8])
        lines.append(f"  Not decided: {names}{' and others' if len(found.open) > 8 else ''}.")
    lines.append(f"  {found.lost} lose more. The whole list is wrong anywhere with chance at most {wanted.alpha:g}.")
    lines.append("  Losses are those of the tasks' own prompts; what a longer context loses was not measured.")
    return "\n".join([*lines, ""])


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%".replace("-", notation.MINUS) if math.isfinite(value) else "?"


def to_json(found: Recommendation) -> dict[str, Any]:
    """The same as plain data."""

    def row(c: Candidate) -> dict[str, Any]:
        return {
            "label": c.label,
            "config": c.config,
            "cost": c.cost,
            "loss": c.loss if math.isfinite(c.loss) else None,
            "loss_bound": c.worst if math.isfinite(c.worst) else None,
            "task": c.worst_on,
            "p": c.p,
            "mode": c.mode,
            "speed": c.speed,
            "not_measured_on": c.missing,
        }

    return {
        "model": found.model,
        "tasks": list(found.tasks),
        "max_loss": found.wanted.max_loss,
        "alpha": found.wanted.alpha,
        "recommended": [row(c) for c in found.kept],
        "undecided": [row(c) for c in found.open],
        "lose_more": found.lost,
        "quantised_dense": found.integers,
        "advice": found.advice,
    }
