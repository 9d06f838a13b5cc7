"""What a stored cell's record says of itself, as far as it can be checked without model and data."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from typing import Literal

from sparsebench import adapters
from sparsebench.budget import Budget
from sparsebench.errors import IntegrityError, SparseBenchError
from sparsebench.explain import account_of
from sparsebench.store import StoredCell
from sparsebench.systems.sizes import recorded_shape

Severity = Literal["error", "cannot check", "ok"]
Found = tuple[Severity, str, str]

HIGHEST_RATIO = 20.0
"""FLOPs or bytes over the dense system's beyond which a record is not plausible."""
AGREES = 1e-6
"""Relative difference up to which what is computed again is what was recorded."""
LEAST_DECODE_QUERIES = 16
PARTS = (("activation.zeros", "activation.total"), ("attention.kept", "attention.visible"))
"""Counters that are parts of others."""
SIGNED = frozenset({"decode.correction.steps"})
"""Counters of more or less than a text would have taken: of corrections, steps in vain less steps that were spared."""


def record_findings(cell: StoredCell) -> Iterator[Found]:
    """What the record says of itself."""
    outcome, place = cell.record.outcome, cell.record.placement
    if outcome.status == "failed":
        if outcome.metrics or cell.record.samples_sha256:
            yield "error", "record", "a failed cell with metrics or samples"
        return
    if not outcome.metrics:
        yield "error", "record", "no metric"
    if cell.record.samples_sha256 is None:
        yield "error", "samples", "no samples were stored"
    if place.role != "baseline" and place.baseline is None:
        yield "cannot check", "baseline", "its grid names no baseline"
    if cell.environment.dirty:
        yield "cannot check", "provenance", "computed with uncommitted changes"
    if cell.spec.mode == "simulated" and outcome.speed:
        yield "error", "plausible", f"a simulated cell with a speed ({', '.join(sorted(outcome.speed))})"
    yield from _plausible(cell)
    yield from _counters(cell)
    yield from _cost(cell)
    yield from _placement(cell)
    yield from _names(cell)


def _plausible(cell: StoredCell) -> Iterator[Found]:
    """Numbers within the bounds of what they can be."""
    outcome = cell.record.outcome
    shares = {"sparsity": outcome.sparsity, **{f"realised {name}": value for name, value in outcome.densities.items()}}
    least = _least(outcome.counters)
    for name, share in shares.items():
        # A correction computes again what was skipped: more than there is without it, if it does so often.
        most = HIGHEST_RATIO if name.startswith("realised effective density") else 1 + 1e-9
        if share is not None and not least - 1e-9 <= share <= most:
            yield "error", "plausible", f"{name} is {share}, outside 0 to 1"
    costs = {
        "FLOPs": (outcome.flops, outcome.flops_dense),
        "bytes a token": (outcome.bytes_per_token, outcome.bytes_per_token_dense),
    }
    for name, (part, whole) in costs.items():
        if part is None:
            continue
        if not (math.isfinite(part) and part >= 0) or (whole is not None and not (math.isfinite(whole) and whole > 0)):
            yield "error", "plausible", f"{name} {part} of {whole}"
        elif whole is None:
            yield "cannot check", "plausible", f"{name} without the dense system's"
        elif part > HIGHEST_RATIO * whole:
            yield "error", "plausible", f"{name} are {part / whole:.3g} times the dense system's"
    quantities = {
        "seconds": outcome.seconds,
        "prepare_seconds": outcome.prepare_seconds,
        "prepare_tokens": outcome.prepare_tokens,
        "prepare_memory": outcome.prepare_memory,
        "bits_per_weight": outcome.bits_per_weight,
        "peak_memory": outcome.peak_memory,
        "energy": outcome.energy,
        "decode_queries": outcome.decode_queries,
        **{
            f"counter {name}": value + _added(outcome.counters, name)
            for name, value in outcome.counters.items()
            if name not in SIGNED
        },
    }
    for name, quantity in quantities.items():
        if quantity is not None and not (math.isfinite(quantity) and quantity >= 0):
            yield "error", "plausible", f"{name} is {quantity}"


def _added(counters: dict[str, float], name: str) -> float:
    """Work of the method itself that was taken off what a counter says: that may be below zero by as much."""
    phase = name.removesuffix(".activation.zeros")
    return 0.0 if phase == name else max(0.0, counters.get(f"{phase}.activation.added", 0.0))


def _least(counters: dict[str, float]) -> float:
    """The least share of zeros that there can be: below zero where a method does work of its own."""
    totals = {phase: counters.get(f"{phase}.activation.total", 0.0) for phase in ("prefill", "decode")}
    return min(
        -_added(counters, f"{phase}.activation.zeros") / total if total > 0 else 0.0 for phase, total in totals.items()
    )


def _counters(cell: StoredCell) -> Iterator[Found]:
    """Realised sparsity, phases and decode queries are what the counters give."""
    outcome, counters = cell.record.outcome, cell.record.outcome.counters
    for phase in ("prefill", "decode"):
        for part, whole in PARTS:
            some, everything = counters.get(f"{phase}.{part}", 0.0), counters.get(f"{phase}.{whole}", 0.0)
            if some > everything * (1 + AGREES):
                yield "error", "counters", f"counter {phase}.{part} is more than {phase}.{whole}"
    kinds = {"inputs in scope, weighted by outputs": PARTS[0], "attention pairs in": PARTS[1]}
    for begin, (part, whole) in kinds.items():
        if outcome.sparsity is None or not outcome.sparsity_of.startswith(begin):
            continue
        acted = [p for p in outcome.phase.split("+") if p]
        some = sum(counters.get(f"{p}.{part}", 0.0) for p in acted)
        everything = sum(counters.get(f"{p}.{whole}", 0.0) for p in acted)
        if not everything:
            if outcome.exercised:
                yield "error", "counters", f"a sparsity of {begin}, but no counter of them"
            continue
        given = some / everything if part.endswith("zeros") else 1 - some / everything
        if not math.isclose(given, outcome.sparsity, rel_tol=AGREES, abs_tol=AGREES):
            yield "error", "counters", f"sparsity is recorded as {outcome.sparsity:.6g}, its counters give {given:.6g}"
        acts = set(acted) != {"decode"} or (outcome.decode_queries or 0.0) >= LEAST_DECODE_QUERIES
        if outcome.exercised != acts:
            word = "exercised" if acts else "not exercised"
            yield (
                "error",
                "counters",
                f"recorded as {'' if outcome.exercised else 'not '}exercised, its counters say {word}",
            )


def _cost(cell: StoredCell) -> Iterator[Found]:
    """FLOPs and bytes are what the cost model makes of the counters and the model's sizes."""
    if cell.spec.system.kind != "causal-lm" or cell.record.outcome.flops is None:
        return
    try:
        shape = recorded_shape(cell.record.system)
    except IntegrityError as error:
        yield "error", "cost", error.message
        return
    if shape is None:
        yield "cannot check", "cost", NO_SIZES
        return
    outcome, lines = cell.record.outcome, account_of(cell.spec, cell.record, shape).lines
    recorded = {
        ("flops", "sparse", "FLOPs"): outcome.flops,
        ("flops", "dense", "dense FLOPs"): outcome.flops_dense,
        ("bytes", "sparse", "bytes a token"): outcome.bytes_per_token,
        ("bytes", "dense", "dense bytes a token"): outcome.bytes_per_token_dense,
    }
    for (unit, system, name), value in recorded.items():
        given = sum(getattr(line, system) for line in lines if line.unit == unit)
        if value is not None and not math.isclose(given, value, rel_tol=AGREES):
            yield "error", "cost", f"{name} are recorded as {value:.6g}, its counters give {given:.6g}"


NO_SIZES = "the record has no sizes of the model, from which its cost could be computed again"


def _placement(cell: StoredCell) -> Iterator[Found]:
    """Label and role are those of the methods that the specification names."""
    place, stack = cell.record.placement, cell.spec.stack
    if stack and place.role == "baseline" and place.baseline not in (None, cell.id):
        yield "error", "placement", "a baseline that is compared with another cell"
    if cell.spec.system.replica and place.role != "noise":
        yield "error", "placement", f"a noise row in the role of a {place.role}"
    if not stack:
        compared = place.role == "comparator" and place.baseline is not None  # with another row than itself
        if place.role not in ("baseline", "noise") and not compared:
            yield "error", "placement", f"nothing is attached, yet its role is {place.role}"
        return
    try:
        members = [(adapters.get(m.method), Budget.from_dict(m.budget) if m.budget else None) for m in stack]
    except (SparseBenchError, ImportError):
        yield "cannot check", "placement", f"{'+'.join(m.method for m in stack)} is not installed here"
        return
    named = " + ".join(f"{a.card.id} {budget.label}" if budget else a.card.id for a, budget in members)
    if place.label != named:
        yield "error", "placement", f"it is called {place.label!r}, its specification is of {named!r}"
    role = members[-1][0].card.role
    if place.role not in (role, "baseline"):
        yield "error", "placement", f"its role is {place.role}, {members[-1][0].card.id} is a {role}"


def _names(cell: StoredCell) -> Iterator[Found]:
    """Names are names: no control characters, no markup. Reports show either as text, so they do no harm."""
    place, spec = cell.record.placement, cell.spec
    shown = [place.suite, place.grid, place.label, place.config, place.family, spec.task.id, spec.system.ref]
    shown += [cell.environment.hardware, cell.environment.command, *(fact.name for fact in cell.record.data)]
    if any(unicodedata.category(c) in ("Cc", "Cf") for text in shown for c in text):
        yield "cannot check", "names", "a name holds control or direction characters, which reports leave out"
    if any(c in text for text in shown for c in "<>"):
        yield "cannot check", "names", "a name holds markup, which reports show as text"
