"""Predicted times: predicted FLOPs over what this machine's matrix product reaches, and what is no matrix product."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sparsebench.plan import PREDICTED_SHARE

if TYPE_CHECKING:
    from sparsebench.plan import Plan

RETRIEVAL_SECONDS: Final = 4.0
"""Searching, scoring and timing single queries, whatever the encoder: the median of the shipped suite's cells."""


def matmul_rate(dtype: str, device: str = "cpu") -> float:
    """FLOP/s of a 2048 x 2048 x 2048 matrix product in `dtype`, measured in a fraction of a second."""
    import torch

    size = 2048
    a = torch.randn(size, size).to(device=device, dtype=getattr(torch, dtype))
    a @ a
    start, rounds = time.perf_counter(), 3
    for _ in range(rounds):
        a @ a
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return rounds * 2 * size**3 / (time.perf_counter() - start)


def predicted_seconds(plan: Plan) -> dict[str, float]:
    """Predicted time of each cell, by id."""
    rates: dict[str, float] = {}
    seconds = {}
    for cell in plan.cells:
        dtype = cell.spec.system.dtype or "float32"
        if dtype not in rates:
            rates[dtype] = matmul_rate(dtype)
        seconds[cell.id] = cell.flops / (rates[dtype] * PREDICTED_SHARE)
        if cell.spec.system.kind != "causal-lm":
            seconds[cell.id] += RETRIEVAL_SECONDS
    return seconds
