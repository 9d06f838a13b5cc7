"""2:4 linear layers against cuBLAS in bf16: where they cross, and a stack of layers.

    python benchmarks/gpu/two_four.py [--seconds N] [--out DIR]

Shapes of an 8B model, random weights with the smaller two of every four set to zero. A graph goes round several copies
of the weights; where a backend cannot be recorded in a graph, its calls are timed as they are, which `graph` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from protocol import Launch, Part, compare, error_of, fastest, graphed, joules
from shape import HEAD_DIM, HEADS, KV_HEADS, LABEL, LAYERS, Layer, Pointwise, dense_attention, random_weight, rotary
from torch.nn import functional as F

from sparsebench.kernels.semi_structured import backends, compressed, largest_of_four
from sparsebench.speed.protocol import amdahl

BATCHES = (1, 16, 64, 256, 1024, 2048, 4096, 8192)
COPIES = 3


def product_error(backend: str) -> float:
    weight = largest_of_four(random_weight(1024, 2048))
    x = torch.randn(256, 2048, dtype=torch.bfloat16, device="cuda")
    return error_of(F.linear(x, compressed(weight, backend)), x.double() @ weight.double().T)


def launch(calls: list[Callable[[], object]]) -> Launch:
    """The calls, in a graph if that can be."""
    try:
        return graphed(calls)
    except Exception:
        torch.cuda.synchronize()

        def run() -> None:
            for call in calls:
                call()

        return Launch(run, len(calls))


def linear_row(name: str, made: dict[str, dict[str, list[Any]]], batch: int) -> dict[str, Any]:
    _, inputs = Layer.SHAPES[name]
    x = torch.randn(batch, inputs, dtype=torch.bfloat16, device="cuda")
    sides = {kind: launch([lambda w=w: F.linear(x, w) for w in made[name][kind]]) for kind in made[name]}  # type: ignore[misc]
    row = compare("cuBLAS bf16", sides, {kind: 2.0 for kind in sides if kind != "cuBLAS bf16"})
    return row | {"shape": Layer.SHAPES[name], "batch": batch, "density": 0.5}


def stack_row(tokens: int, layers: int, backend: str, steps: Pointwise) -> dict[str, Any]:
    """Prefill of a stack of layers whose linear layers are all 2:4."""
    dense = [Layer() for _ in range(layers)]
    for layer in dense:
        layer.weights = {name: largest_of_four(w) for name, w in layer.weights.items()}
    pruned = [Layer({name: compressed(w, backend) for name, w in layer.weights.items()}) for layer in dense]
    start = torch.randn(tokens, Layer.SHAPES["qkv"][1], dtype=torch.bfloat16, device="cuda")
    hidden, turn = torch.empty_like(start), rotary(tokens)
    shape = (1, HEADS, tokens, HEAD_DIM)
    q, k, v = (torch.randn(1, n, *shape[2:], dtype=torch.bfloat16, device="cuda") for n in (HEADS, KV_HEADS, KV_HEADS))
    kinds = {n: (lambda n=n: Launch(lambda: dense_attention(n, causal=True)(q, k, v))) for n in ("flash", "cuDNN")}
    attention, _, tried = fastest(kinds, 3)
    attend = dense_attention(attention, causal=True)

    def run(stack: list[Layer]) -> torch.Tensor:
        hidden.copy_(start)
        for layer in stack:
            layer(hidden, turn, attend, steps)
        return hidden

    with torch.no_grad():
        apart = error_of(run(pruned).clone(), run(dense))
        sides = {"dense, cuBLAS bf16": launch([lambda: run(dense)]), f"2:4, {backend}": launch([lambda: run(pruned)])}
        row = compare("dense, cuBLAS bf16", sides, {f"2:4, {backend}": 2.0})
    total = row["sides"]["dense, cuBLAS bf16"]["median_ms"] / layers
    flops = 2 * tokens * sum(a * b for a, b in Layer.SHAPES.values())
    share = 1 - tried[attention] / total
    row["bound"] = (
        f"all but attention is {share:.3f} of the dense time: at most {amdahl(share, 2.0):.2f}x at twice the speed"
    )
    row |= {"amdahl_bound": amdahl(share, 2.0), "layers": layers, "tokens": tokens, "batch": 1, "error": apart}
    row |= {"model": f"{LABEL}, {layers} of {LAYERS} layers", "linear_flops_a_layer": flops, "attention": attention}
    row["joules"] = {side: joules(sides[side]) for side in sides}
    return row


def crossover(part: Part) -> dict[str, Any]:
    """The smallest number of rows at which 2:4 is faster, for each shape and backend."""
    found: dict[str, Any] = {}
    for row in part.result["rows"].values():
        for side, values in row.get("sides", {}).items():
            if "shape" in row and values.get("ratio", 0) > 1:
                key = f"{row['shape'][0]} x {row['shape'][1]}, {side}"
                found[key] = min(found.get(key, row["batch"]), row["batch"])
    return found


def main() -> None:
    part = Part("two_four")
    torch.manual_seed(0)
    steps = Pointwise()

    def compile_steps() -> None:
        nonlocal steps
        steps = Pointwise.compile()

    part.attempt("compile element-wise steps", compile_steps)
    with part.turn():
        # A backend that does not run on this GPU, or is wrong, takes no part.
        checks = {b: partial(product_error, b) for b in backends()}
        good = [b for b, error in checks.items() if part.check(f"product, {b}", error, 1e-2, required=False)]
        made: dict[str, dict[str, list[Any]]] = {}

        def make(name: str) -> None:
            weights = [largest_of_four(random_weight(*Layer.SHAPES[name])) for _ in range(COPIES)]
            made[name] = {"cuBLAS bf16": weights} | {f"2:4, {b}": [compressed(w, b) for w in weights] for b in good}

        for name in Layer.SHAPES:
            part.attempt(f"compress {name}", partial(make, name))
        for batch in BATCHES:
            for name in ("gate_up", "down", "o", "qkv"):
                part.row(f"2:4 {name} M={batch}", partial(linear_row, name, made, batch), 12)
        part.result["crossover"] = crossover(part)
        print(f"2:4 is faster from M = {part.result['crossover']}", flush=True)
        made.clear()
        for tokens in (8192, 1024):
            for backend in good[:1]:
                part.row(f"2:4 stack {tokens} tokens", lambda t=tokens, b=backend: stack_row(t, 8, b, steps), 4)  # type: ignore[misc]


if __name__ == "__main__":
    main()
