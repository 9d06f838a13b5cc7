"""A layer of simulated sparse attention with kernels for masks against the plain forms, outputs and counts compared.

    python benchmarks/gpu/masks.py [--out FILE] [--repetitions 9]

Sizes of SmolLM2-135M (9 heads, 3 key heads, 64 entries), 16 prompts of 4,096 tokens or 120 steps over as many keys, and
of an 8B model (32, 8, 128) with one prompt of 8,192; random queries and keys in bfloat16. Times are those of choosing,
attending and counting in one layer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from protocol import Launch, compare, environment, error_of

from sparsebench.adapters import Prepared, create
from sparsebench.cost import ModelShape
from sparsebench.engine import fused
from sparsebench.engine.attention import AttentionView, Geometry
from sparsebench.systems.counters import Counters

SIZES = {"135M": (9, 3, 64, 16, 4096), "8B": (32, 8, 128, 1, 8192)}
"""Heads, key heads, head dimension, prompts and their tokens."""
STEPS = 120
METHODS: list[tuple[str, dict[str, Any], bool]] = [
    ("oracle-tokens", {"phase": "prefill"}, False),
    ("oracle-blocks", {"phase": "prefill"}, False),
    ("vertical-slash", {}, False),
    ("block-topk", {}, False),
    ("a-shape", {}, False),
    ("oracle-tokens", {"phase": "decode"}, True),
    ("oracle-blocks", {"phase": "decode"}, True),
    ("quest", {"dense": 0}, True),
    ("random-tokens", {"phase": "decode"}, True),
]


def view_of(size: str, decode: bool) -> AttentionView:
    """Random rows of one length."""
    heads, kv_heads, dim, rows, tokens = SIZES[size]
    rows, queries = (STEPS, 1) if decode else (rows, tokens)
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(count: int, length: int) -> torch.Tensor:
        return torch.randn(rows, count, length, dim, device="cuda", dtype=torch.bfloat16, generator=generator)

    places = np.tile(np.arange(tokens - queries, tokens), (rows, 1))
    lengths = np.full(rows, tokens)
    at = torch.from_numpy(places).cuda(), torch.from_numpy(lengths).cuda()
    tensors = drawn(heads, queries), drawn(kv_heads, tokens), drawn(kv_heads, tokens)
    known = Geometry(places, lengths, at)
    states: list[list[dict[Any, Any]]] = [[{}] for _ in range(rows)]
    return AttentionView(*tensors, *at, dim**-0.5, 0, decode, states=states, aligned=not decode, known=known)


@contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Whether kernels are used within."""
    before = fused.usable
    fused.usable = before if used else lambda x: False
    try:
        yield
    finally:
        fused.usable = before


def row_of(size: str, name: str, knobs: dict[str, Any], decode: bool, repetitions: int) -> dict[str, Any]:
    heads, kv_heads, dim, _, _ = SIZES[size]
    shape = ModelShape(heads * dim, 30, heads, kv_heads, dim, dim, 100, 1, 1, 1, 1, (None,) * 30)
    view, chosen = view_of(size, decode), create(name, sparsity=0.7, **knobs)
    found: dict[bool, tuple[torch.Tensor, dict[str, float]]] = {}
    sides = {}
    for used in (False, True):
        system: Any = SimpleNamespace(shape=shape, counters=Counters())
        policy = chosen.adapter.policy(system, Prepared(), chosen.budget, None)

        def run(policy: Any = policy, used: bool = used) -> torch.Tensor:
            with kernels(used):
                out: torch.Tensor = policy.attend(view)
            return out

        out = run()
        found[used] = out, system.counters.on_host()
        sides["kernels" if used else "plain"] = Launch(run)
    (plain, counted), (fast, again) = found[False], found[True]
    apart = {key: again[key] / counted[key] - 1 for key in counted if counted[key] and again[key] != counted[key]}
    row = compare("plain", sides, None, repetitions)
    phase = "decode" if decode else "prefill"
    return row | {"name": f"{size} {name} {phase}", "error": error_of(fast, plain), "counts_apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-masks.json"))
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        for name, knobs, decode in METHODS:
            try:
                row = row_of(size, name, knobs, decode, given.repetitions)
            except Exception as error:
                torch.cuda.empty_cache()
                row = {"name": f"{size} {name}", "failed": f"{type(error).__name__}: {str(error)[:300]}"}
                print(row["name"], row["failed"], flush=True)
            else:
                fast, slow = (row["sides"][side]["median_ms"] for side in ("kernels", "plain"))
                print(f"{row['name']}: {slow:.3f} ms plain, {fast:.3f} ms, error {row['error']:.1e}", end=" ")
                furthest = max(map(abs, row["counts_apart"].values()), default=0.0)
                print(f"counts apart by {furthest:.1e} at most", flush=True)
            rows.append(row)
            given.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
