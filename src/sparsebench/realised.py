"""What a cell really was: realised sparsity, phases that were exercised, FLOPs and bytes, from what was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError
from sparsebench.records import Outcome

if TYPE_CHECKING:
    from sparsebench.account import WeightStorage
    from sparsebench.adapters.base import Sparsity
    from sparsebench.cost import ModelShape
    from sparsebench.systems.base import System
    from sparsebench.systems.weights import WeightSparsity
    from sparsebench.tasks.base import BoundTask, TaskResult

LEAST_DECODE_QUERIES = 16
"""Fewer decode queries a sample exercise no decode method."""

Weights = tuple["WeightSparsity | None", "WeightSparsity | None"]


def outcome_of(
    system: System, stack: list[Sparsity], weights: Weights, bound: BoundTask, result: TaskResult, seconds: float
) -> Outcome:
    """The outcome of an evaluated cell, without its metrics.

    Args:
        system: The system as it ran, its counters filled.
        stack: What was attached.
        weights: Zeros in the weights before and after attaching; None where the system has none to prune.
        bound: The task.
        result: What evaluating gave; a retrieval task's facts hold what its index and vectors count.
        seconds: Wall time of evaluating.
    """
    outcome = Outcome(status="ok", seconds=seconds)
    if system.kind != "causal-lm":
        return _retrieval(outcome, result)
    outcome.speed = result.facts.pop("speed", {})
    outcome.energy = result.facts.pop("joules", None)
    return _language_model(outcome, system, stack, weights, bound, result.facts.get("time_shares") or {})


def _retrieval(outcome: Outcome, result: TaskResult) -> Outcome:
    counted: dict[str, Any] = result.facts.pop("counted", {})
    outcome.sparsity = counted.pop("sparsity", None)
    outcome.sparsity_of = counted.pop("sparsity_of", "")
    outcome.flops = counted.pop("flops", None)
    outcome.flops_dense = counted.pop("flops_dense", None)
    outcome.bytes_per_token = counted.pop("bytes", None)
    outcome.bytes_per_token_dense = counted.pop("bytes_dense", None)
    outcome.speed = counted.pop("speed", {})
    outcome.densities = counted.pop("densities", {})
    outcome.counters = counted
    return outcome


def _language_model(
    outcome: Outcome,
    system: Any,
    stack: list[Sparsity],
    weights: Weights,
    bound: BoundTask,
    shares: Mapping[str, Mapping[str, float]],
) -> Outcome:
    from sparsebench.account import ACTIVE_BYTES, ACTIVE_ZEROS, Counted, account
    from sparsebench.cost import BYTES, PHASES
    from sparsebench.timeshares import amdahl

    sums = system.counters.sums
    outcome.counters = system.counters.to_dict()
    outcome.decode_queries = sums.get("decode.tokens", 0.0) / max(1, bound.workload.counted or bound.workload.samples)
    families = {member.adapter.card.family for member in stack}
    if "pruning" in families:
        _weights(outcome, weights, _pattern(stack))
    if "activation" in families:
        _activations(outcome, system, stack)
    if "attention" in families:
        _attention(outcome, system, stack)
    _shared_out(outcome, stack)
    try:
        shape = system.shape
    except InputError:
        return outcome  # an architecture whose cost is not modelled has none
    prefill, decode = (Counted.of(shape, sums, phase, system.unreduced) for phase in PHASES)
    storage = _storage(stack, weights, shape)
    if weights[1] is not None and weights[1].active is not None and storage.bits is not None:
        outcome.densities |= {ACTIVE_ZEROS: storage.sparsity, ACTIVE_BYTES: storage.bits / 8 / BYTES}
    made = account(shape, prefill, decode, storage, system.unreduced)
    lines = made.lines
    outcome.flops = sum(line.sparse for line in lines if line.unit == "flops")
    outcome.flops_dense = sum(line.dense for line in lines if line.unit == "flops")
    if sums.get("decode.tokens"):
        outcome.bytes_per_token = sum(line.sparse for line in lines if line.unit == "bytes")
        outcome.bytes_per_token_dense = sum(line.dense for line in lines if line.unit == "bytes")
    for phase in PHASES if outcome.speed else ():
        if left := made.left(phase) if phase in shares else {}:
            outcome.speed[f"{phase} speed-up, at most"] = amdahl(shares[phase], left)
    return outcome


def _weights(outcome: Outcome, weights: Weights, pattern: str | None) -> None:
    before, after = weights
    if before is None or after is None:
        return
    kept = after.prunable - after.zeros
    outcome.sparsity = (before.prunable - kept) / max(1, before.prunable)
    outcome.sparsity_of = "prunable weights"
    outcome.bits_per_weight = 8 * _stored_bytes(after, pattern) / max(1, before.prunable)
    outcome.densities |= {
        "zeros in all weights": after.zeros / max(1, after.total),
        "zeros in prunable weights before": before.zeros / max(1, before.prunable),
    }
    outcome.phase = "prefill+decode"


def _activations(outcome: Outcome, system: Any, stack: list[Sparsity]) -> None:
    sums = system.counters.sums
    acted = [p for p in ("prefill", "decode") if sums.get(f"{p}.activation.total", 0.0) > 0]
    zeros = sum(sums[f"{p}.activation.zeros"] for p in acted)
    total = sum(sums[f"{p}.activation.total"] for p in acted)
    if total:
        outcome.sparsity, outcome.sparsity_of = zeros / total, "inputs in scope, weighted by outputs"
    for phase in acted:
        outcome.densities[f"activation zeros in {phase}"] = system.counters.ratio(
            f"{phase}.activation.zeros", f"{phase}.activation.total"
        )
    executed = system.counters.ratio("decode.activation.executed", "decode.activation.total")
    if executed is not None and any(_executed(member) for member in stack):
        outcome.densities["executed share of decode"] = executed
    outcome.densities |= _corrections(sums)
    outcome.phase = "+".join(acted)
    outcome.exercised &= total > 0 and _enough_decode(outcome, stack, acted)


def _executed(member: Sparsity) -> bool:
    return member.adapter.card.family == "activation" and getattr(member.adapter, "mode", "") == "executed"


def _corrections(sums: Mapping[str, float]) -> dict[str, float]:
    """Of a method that the dense model corrects: corrections and checks of a token, and the weights read for it.

    Tokens are those of the texts that stay. The weights are those of the linear layers, in all passes together, at
    batch 1, over what the dense model reads.
    """
    checks, tokens = sums.get("decode.correction.checks", 0.0), sums.get("decode.tokens", 0.0)
    if not (checks and tokens):
        return {}
    steps = 1 + sums.get("decode.correction.steps", 0.0) / tokens
    linear = sums.get("decode.activation.linear", 0.0)
    saved = sums.get("decode.activation.zeros", 0.0) / linear if linear else 0.0
    return {
        "corrections of a token": sums.get("decode.correction.replaced", 0.0) / tokens,
        "checks of a token": checks / tokens,
        "effective density in decode": steps * (1 - saved) + checks / tokens,
    }


def _attention(outcome: Outcome, system: Any, stack: list[Sparsity]) -> None:
    sums = system.counters.sums
    wanted = {p for m in stack if m.adapter.card.family == "attention" for p in phases_of(m)}
    acted = [p for p in ("prefill", "decode") if p in wanted and sums.get(f"{p}.attention.visible", 0.0) > 0]
    kept = sum(sums[f"{p}.attention.kept"] for p in acted)
    visible = sum(sums[f"{p}.attention.visible"] for p in acted)
    if visible:
        outcome.sparsity, outcome.sparsity_of = 1 - kept / visible, f"attention pairs in {' and '.join(acted)}"
    for phase in acted:
        for part in ("kept", "tiles", "union"):
            share = system.counters.ratio(f"{phase}.attention.{part}", f"{phase}.attention.visible")
            if share is not None and f"{phase}.attention.{part}" in sums:
                scale = system.shape.heads / system.shape.kv_heads if part == "union" else 1.0
                outcome.densities[f"{_DENSITY[part]} density in {phase}"] = share * scale
    held = system.counters.ratio("decode.kv_bytes_resident", "decode.kv_bytes_resident_dense")
    if held is not None:
        outcome.densities["cache bytes resident in decode"] = held
    outcome.phase = "+".join(acted)
    outcome.exercised &= visible > 0 and _enough_decode(outcome, stack, acted)


_DENSITY = {"kept": "pair", "tiles": "tile", "union": "group-union"}


def phases_of(member: Sparsity) -> tuple[str, ...]:
    """Phases in which a member acts with its knobs."""
    own = getattr(member.adapter, "phases", None)
    return tuple(own()) if callable(own) else member.adapter.card.phases


def _enough_decode(outcome: Outcome, stack: list[Sparsity], acted: Sequence[str]) -> bool:
    """A method that acts in decode only is exercised by enough decode queries."""
    return list(acted) != ["decode"] or (outcome.decode_queries or 0.0) >= LEAST_DECODE_QUERIES


def _shared_out(outcome: Outcome, stack: list[Sparsity]) -> None:
    """A stack over several families has no one sparsity."""
    if len({member.adapter.card.family for member in stack}) > 1:
        outcome.sparsity, outcome.sparsity_of = None, "several: see the densities"


def _pattern(stack: list[Sparsity]) -> str | None:
    """The last pattern that weights were pruned to."""
    budgets = [m.budget for m in stack if m.adapter.card.family == "pruning" and m.budget is not None]
    return next((str(budget.value) for budget in reversed(budgets) if budget.kind == "pattern"), None)


def _storage(stack: list[Sparsity], weights: Weights, shape: ModelShape) -> WeightStorage:
    """How the weights that run for a token are stored."""
    from sparsebench.account import WeightStorage
    from sparsebench.cost import BYTES

    after = weights[1]
    if after is None or not any(m.adapter.card.family == "pruning" for m in stack):
        return WeightStorage()
    if after.active is None:
        size = max(1, after.prunable)
        return WeightStorage(after.zeros / size, bits=8 * _stored_bytes(after, _pattern(stack)) / size)
    # Of a mixture of experts a token meets routers too, which stay as they are.
    size, routers = max(1, shape.linear_params), shape.linear_params - after.active.prunable
    stored = _stored_bytes(after.active, _pattern(stack)) + routers * BYTES
    return WeightStorage(after.active.zeros / size, bits=8 * stored / size)


def _stored_bytes(weights: WeightSparsity, pattern: str | None) -> float:
    """Bytes of the prunable weights: those that a method stores in a form of its own, and the others.

    Of the others kept values are stored with a bitmap, or with their places in a pattern's groups; where that saves
    nothing, they are stored as they are.
    """
    from sparsebench.account import WeightStorage
    from sparsebench.cost import BYTES

    plain = weights.prunable - sum(stored.weights for stored in weights.stored)
    zeros = weights.zeros - sum(stored.weights - stored.kept for stored in weights.stored)
    sparse = WeightStorage(zeros / max(1, plain), pattern or "bitmap")
    own = sum(stored.total_bits for stored in weights.stored) / 8
    return own + min(plain * BYTES, sparse.bytes_of(plain, BYTES))
