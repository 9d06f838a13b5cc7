"""What a cell really was: realised sparsity, phases that were exercised, FLOPs and bytes, from what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError
from sparsebench.records import Outcome

if TYPE_CHECKING:
    from sparsebench.adapters.base import Sparsity
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
    return _language_model(outcome, system, stack, weights, bound)


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
    outcome: Outcome, system: Any, stack: list[Sparsity], weights: Weights, bound: BoundTask
) -> Outcome:
    from sparsebench.account import Counted, account
    from sparsebench.cost import PHASES

    sums = system.counters.sums
    outcome.counters = system.counters.to_dict()
    outcome.decode_queries = sums.get("decode.tokens", 0.0) / max(1, bound.workload.samples)
    families = {member.adapter.card.family for member in stack}
    if "pruning" in families:
        _weights(outcome, weights)
    if "activation" in families:
        _activations(outcome, system, stack)
    if "attention" in families:
        _attention(outcome, system, stack)
    _shared_out(outcome, stack)
    try:
        shape = system.shape
    except InputError:
        return outcome  # an architecture whose cost is not modelled has none
    prefill, decode = (Counted.of(shape, sums, phase) for phase in PHASES)
    lines = account(shape, prefill, decode, _storage(stack, weights)).lines
    outcome.flops = sum(line.sparse for line in lines if line.unit == "flops")
    outcome.flops_dense = sum(line.dense for line in lines if line.unit == "flops")
    if sums.get("decode.tokens"):
        outcome.bytes_per_token = sum(line.sparse for line in lines if line.unit == "bytes")
        outcome.bytes_per_token_dense = sum(line.dense for line in lines if line.unit == "bytes")
    return outcome


def _weights(outcome: Outcome, weights: Weights) -> None:
    before, after = weights
    if before is None or after is None:
        return
    outcome.sparsity, outcome.sparsity_of = after.zeros / max(1, after.prunable), "prunable weights"
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
    outcome.phase = "+".join(acted)
    outcome.exercised &= total > 0 and _enough_decode(outcome, stack, acted)


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


def _storage(stack: list[Sparsity], weights: Weights) -> Any:
    from sparsebench.account import WeightStorage

    pruning = [m for m in stack if m.adapter.card.family == "pruning"]
    if not pruning or weights[1] is None:
        return WeightStorage()
    patterns = [str(m.budget.value) for m in pruning if m.budget is not None and m.budget.kind == "pattern"]
    zeros = weights[1].zeros / max(1, weights[1].prunable)
    return WeightStorage(zeros, patterns[-1] if patterns else "bitmap")
