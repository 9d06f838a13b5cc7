"""What a row was asked to cost in a request, and what it really cost there.

A suite asks for a share of what the dense model costs in a request; the plan solves for the budget that is predicted
to meet it. What was counted can differ: heads of a group do not choose the same keys, and thresholds meet other texts.
Shares are those of the samples' own lengths at the request's batch, and of tasks alone whose samples are near the
request's length: what is left out of a short text says nothing of what a long one costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsebench.account import Account
from sparsebench.cost import ModelShape, Request, dense_cost
from sparsebench.errors import SparseBenchError
from sparsebench.explain import account_of
from sparsebench.store import StoredCell

NEAR = 0.7
"""A task's texts are near a request's length from this share of it on."""

WORDS = {
    "flops": "FLOPs",
    "bytes": "bytes read",
    "kv_bytes": "bytes of keys and values held",
    "active_params": "active weights",
}


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        request: The request's name in its suite.
        of: What the share is of: `flops`, `bytes`, `kv_bytes`, `active_params`.
        share: Share of the dense cost that was asked for.
        realised: The share that was counted; None where what was counted does not say.
    """

    request: str
    of: str
    share: float
    realised: float | None


def asked(cell: StoredCell) -> Asked | None:
    """What a cell was asked to cost; None where its budget is its own."""
    from sparsebench.systems.sizes import recorded_shape

    target = cell.record.placement.facts.get("target")
    if not isinstance(target, Mapping):
        return None
    of = next((kind for kind in WORDS if kind in target), "")
    if not of:
        return None
    shape = recorded_shape(cell.record.system)
    counted = cell.record.outcome.counters
    share = None
    if shape is not None and counted and near(counted, target):
        share = realised(account_of(cell.spec, cell.record, shape), of, target)
        whole = recorded_shape(cell.record.system, "unreduced") or shape
        spent = preparation(cell, whole, target) if of == "flops" and target.get("prepared_for") else 0.0
        share = None if share is None or spent is None else share + spent
    return Asked(str(target.get("request", "")), of, float(target[of]), share)


def near(counted: Mapping[str, float], target: Mapping[str, Any]) -> bool:
    """Whether the texts that ran are about as long as the request: by the keys that a query of theirs sees.

    Queries of a prompt see half of it on average, more where prompts begin alike; those of an answer see all.
    """
    phase, factor = ("decode", 1) if target.get("phase") == "decode" else ("prefill", 2)
    tokens, pairs = counted.get(f"{phase}.tokens", 0.0), counted.get(f"{phase}.causal_pairs", 0.0)
    return bool(tokens) and factor * pairs / tokens >= NEAR * float(target.get("prompt", 0))


def realised(account: Account, of: str, target: Mapping[str, Any]) -> float | None:
    """The share of the dense cost that was counted, without preparation.

    None where a target counts what an account does not have: padded tiles, another model's cost, what prefill reads.

    Args:
        account: Of a cell.
        of: What the share is of.
        target: What was asked for: its request's phase and batch.
    """
    if target.get("of") or target.get("count", "ideal") != "ideal":
        return None
    phase = target.get("phase", "prefill")
    if of == "flops":
        return account.ratio("flops", None if phase == "whole" else phase)
    if of != "bytes" or phase != "decode":
        return None
    dense = sparse = 0.0
    for line in account.lines:
        if line.unit == "bytes" and line.phase == "decode":
            # The sequences of a batch read the weights together, and their keys each for itself.
            batch = int(target.get("batch", 1)) if line.item in ("weights", "head") else 1
            dense, sparse = dense + line.dense / batch, sparse + line.sparse / batch
    return sparse / dense if dense else None


def preparation(cell: StoredCell, shape: ModelShape, target: Mapping[str, Any]) -> float | None:
    """FLOPs of the tokens that preparing read, spread over the requests that it serves, as a share of one of these.

    `shape` is the dense model's. A dense pass over each token, three where a method of the stack has gradients, as
    `iso.preparation` predicts them. None where the length of the texts or a method is not known here.
    """
    from sparsebench import adapters

    tokens, length = cell.record.outcome.prepare_tokens, (cell.spec.calibration or {}).get("length")
    if not tokens:
        return 0.0
    try:
        cards = [adapters.get(member.method).card for member in cell.spec.stack]
    except SparseBenchError:
        return None
    if not isinstance(length, int) or length < 1:
        return None
    once = dense_cost(shape, Request(length, 0)).prefill.flops * tokens / length
    costs = dense_cost(shape, Request(int(target["prompt"]), int(target.get("answer", 0))))
    phase = target.get("phase", "prefill")
    request = (costs.whole if phase == "whole" else costs.of(phase)).flops
    passes = 3 if any(card.training == "gradient" for card in cards) else 1
    return passes * once / (int(target["prepared_for"]) * request)


def axis(of: str, request: str) -> str:
    """What a figure's axis says."""
    return f"{WORDS.get(of, of)} in {request}, as a share of dense"
