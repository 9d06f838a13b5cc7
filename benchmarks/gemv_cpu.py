"""Is a matrix-vector product that reads only active columns faster than PyTorch's dense one on this processor?

    python benchmarks/gemv_cpu.py [--threads N] [--repetitions N] [--out FILE]

The two large products of an 8B layer (gate and up, down), in float32 and bfloat16, random weights, 50, 70 and 90 % of
the inputs inactive; thresholds are quantiles of the input. The baseline is the fastest of PyTorch's ways to do the
dense product. Sides take turns, and each goes round several copies of its weight so that none finds it in the cache.
Exit code 1 when 50 % is not at least 1.5 times as fast.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparsebench import environment
from sparsebench.kernels.gemv_cpu import ColumnWeight, threads
from sparsebench.speed.protocol import REPETITIONS, compared, in_turns, timed

SHAPES = {"gate_up": (28672, 4096), "down": (4096, 14336)}
SPARSITIES = (0.5, 0.7, 0.9)
COPIES = 2
TARGET = 1.5

Side = Callable[[], float]


def dense_sides(weights: list[torch.Tensor], x: torch.Tensor) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "linear": lambda weight: torch.nn.functional.linear(x[None], weight),
        "mv": lambda weight: torch.mv(weight, x),
    }


def rounds(function: Callable[[Any], object], copies: list[Any]) -> Side:
    """Milliseconds a call over all copies in turn."""

    def run() -> float:
        return timed(lambda: [function(copy) for copy in copies]) / len(copies)

    return run


def row(name: str, dtype: torch.dtype, repetitions: int) -> dict[str, Any]:
    torch.manual_seed(0)
    outputs, inputs = SHAPES[name]
    weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(COPIES)]
    x = torch.randn(inputs).to(dtype)
    candidates = {n: rounds(call, weights) for n, call in dense_sides(weights, x).items()}
    tried = {n: median(times) for n, times in in_turns(candidates, 3).items()}
    best = min(tried, key=lambda n: tried[n])
    baseline = f"PyTorch {best}"
    columns = [ColumnWeight(weight) for weight in weights]
    sides: dict[str, Side] = {baseline: candidates[best]}
    nominal = {}
    for sparsity in SPARSITIES:
        threshold = float(x.float().abs().quantile(sparsity))
        side = f"active columns, {sparsity:.0%} inactive"
        sides[side] = rounds(lambda weight, t=threshold: weight(x, t), columns)
        nominal[side] = inputs / int((x.float().abs() > threshold).sum())
        expected = torch.where(x.abs() > threshold, x, 0).float() @ weights[0].float().T
        error = float((columns[0](x, threshold).float() - expected).norm() / expected.norm())
        if not error < 1e-2:
            raise SystemExit(f"{name}, {dtype}: wrong by {error:.1e}")
    result = compared(in_turns(sides, repetitions), baseline, nominal)
    result |= {"shape": [outputs, inputs], "dtype": str(dtype), "candidates_ms": tried}
    for side, values in result["sides"].items():
        share = 1 / nominal.get(side, 1.0)
        values["gigabytes_per_second"] = share * outputs * inputs * x.element_size() / values["median_ms"] / 1e6
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=max(15, REPETITIONS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = {}
    good = True
    for dtype in (torch.bfloat16, torch.float32):
        for name in SHAPES:
            with threads(given.threads):
                result = row(name, dtype, given.repetitions)
            rows[f"{name} {str(dtype).removeprefix('torch.')}"] = result
            for side, values in result["sides"].items():
                line = f"{name:8} {str(dtype).removeprefix('torch.'):9} {side:32} {values['median_ms']:8.3f} ms"
                if "ratio" in values:
                    low, high = values["ratio_interval"]
                    line += f"  {values['ratio']:.2f}x [{low:.2f}, {high:.2f}] of {values['ratio_nominal']:.2f}"
                print(line, flush=True)
            good &= result["sides"]["active columns, 50% inactive"]["ratio"] >= TARGET
    if given.out:
        facts = {"threads": given.threads, "hardware": environment.hardware(), "torch": torch.__version__}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    print("OK" if good else f"FAIL: below {TARGET} times at 50 %")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
