"""What a row was asked to cost in a request, and what it really cost there.

A suite asks for a share of what the dense model costs in a request; the plan solves for the budget that is predicted
to meet it. What was counted can differ: heads of a group do not choose the same keys, and thresholds meet other texts.
Shares are those of the samples' own lengths, which are near the request's, at the request's batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsebench.account import Account
from sparsebench.explain import account_of
from sparsebench.store import StoredCell

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
    account = account_of(cell.spec, cell.record, shape) if shape is not None and counted else None
    share = realised(account, of, target) if account is not None else None
    return Asked(str(target.get("request", "")), of, float(target[of]), share)


def realised(account: Account, of: str, target: Mapping[str, Any]) -> float | None:
    """The share of the dense cost that was counted.

    None where a target counts what an account does not have: padded tiles, preparation, another model's cost, what
    prefill reads.

    Args:
        account: Of a cell.
        of: What the share is of.
        target: What was asked for: its request's phase and batch.
    """
    if target.get("of") or target.get("prepared_for") or target.get("count", "ideal") != "ideal":
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


def axis(of: str, request: str) -> str:
    """What a figure's axis says."""
    return f"{WORDS.get(of, of)} in {request}, as a share of dense"
