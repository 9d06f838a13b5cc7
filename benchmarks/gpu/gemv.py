"""Activation-sparse decode of an 8B shape at 50 % against cuBLAS, under CUDA graphs.

    python benchmarks/gpu/gemv.py [--seconds N] [--out DIR]

Each of the four products of a layer alone, then a stack of layers: norms, rotary embedding, attention over a cache of
1,024 tokens, SwiGLU and residuals are in both sides, by the same kernels, so that only the products differ. Thresholds
are the medians of what each product meets; the realised share of active inputs is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from protocol import Launch, Part, compare, error_of, fastest, graphed, joules
from shape import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LABEL, LAYERS, Layer, dense_attention, random_weight, rotary
from torch.nn import functional as F

from sparsebench.kernels import reference
from sparsebench.kernels.sparse_gemv import Active, Columns, active_product, add_norm, gate_up, gather, heads
from sparsebench.speed.protocol import amdahl

CONTEXT = 1024
SPARSITY = 0.5
COPIES = 8
LAYOUTS = {
    "qkv": [Columns(2, 128, 8, 4, 4), Columns(4, 128, 8, 4, 4), Columns(4, 256, 4, 8, 4), Columns(2, 64, 16, 4, 4)],
    "o": [Columns(4, 128, 8, 4, 4), Columns(2, 64, 16, 4, 4), Columns(4, 64, 16, 4, 4), Columns(2, 128, 16, 2, 8)],
    "gate_up": [Columns(1, 128, 8, 4, 4), Columns(1, 256, 4, 8, 4), Columns(1, 256, 4, 4, 4), Columns(2, 256, 4, 4, 4)],
    "down": [Columns(1, 128, 8, 4, 4), Columns(1, 64, 16, 4, 4), Columns(1, 128, 16, 2, 8), Columns(2, 128, 8, 4, 4)],
}
"""With these a product has 256 to 1,024 programs: a multiprocessor holds several, and all run at once or nearly."""
INPUTS = {"qkv": HIDDEN, "o": HEADS * HEAD_DIM, "gate_up": HIDDEN, "down": INNER}


def active(size: int, sparsity: float = SPARSITY) -> Active:
    """A random vector with its median as threshold."""
    x = Active(size, torch.bfloat16, "cuda")
    parts = torch.randn(1, size, dtype=torch.float32, device="cuda")
    gather(parts, x, sparse=False)
    x.threshold.copy_(x.dense.float().abs().quantile(sparsity))
    gather(parts, x)
    return x


def product_error(out: int, inputs: int, layout: Columns) -> float:
    weight, x = random_weight(out, inputs), active(inputs)
    parts = torch.full((layout.splits(inputs), out), float("nan"), device="cuda")
    got = active_product(weight.T.contiguous(), x, parts, layout).sum(0)
    return error_of(got, reference.active_product(weight, x.dense, float(x.threshold)))


def product(columns: list[torch.Tensor], x: Active, layout: Columns) -> Launch:
    inputs, out = columns[0].shape
    parts = torch.empty(layout.splits(inputs), out, device="cuda")
    return graphed([lambda w=w: active_product(w, x, parts, layout) for w in columns])  # type: ignore[misc]


def dense_products(weights: list[torch.Tensor], x: torch.Tensor) -> dict[str, Callable[[], Launch]]:
    row = x[None]
    return {
        "cuBLAS, linear": lambda: graphed([lambda w=w: F.linear(row, w) for w in weights]),  # type: ignore[misc]
        "cuBLAS, mv": lambda: graphed([lambda w=w: torch.mv(w, x) for w in weights]),  # type: ignore[misc]
    }


def product_row(name: str) -> dict[str, Any]:
    out, inputs = Layer.SHAPES[name]
    weights = [random_weight(out, inputs) for _ in range(COPIES)]
    columns = [w.T.contiguous() for w in weights]
    x, every = active(inputs), active(inputs, 0.0)
    every.threshold.fill_(-1.0)
    gather(every.dense[None].float(), every)
    layouts = {str(layout): layout for layout in LAYOUTS[name]}
    best, sparse, tried = fastest({n: (lambda c=c: product(columns, x, c)) for n, c in layouts.items()}, 5)
    dense_name, dense, dense_tried = fastest(dense_products(weights, x.dense), 5)
    sides = {
        dense_name: dense,
        "active columns": sparse,
        "this kernel, all columns": product(columns, every, layouts[best]),
    }
    share = int(x.count.sum()) / inputs
    row = compare(dense_name, sides, {"active columns": 1 / share}, 15)
    for side, part in ((dense_name, 1.0), ("active columns", share), ("this kernel, all columns", 1.0)):
        row["sides"][side]["terabytes_per_second"] = part * out * inputs * 2 / row["sides"][side]["median_ms"] / 1e9
    return row | {
        "active": share,
        "layout": best,
        "layouts_ms": tried,
        "candidates_ms": dense_tried,
        "shape": [out, inputs],
        "batch": 1,
    }


class Stack:
    """A stack of layers that decodes one token, with dense or with active products."""

    def __init__(self, layers: int, layouts: dict[str, Columns], kinds: dict[str, str]) -> None:
        self.layouts, self.kinds = layouts, kinds
        self.rows = [{name: random_weight(*shape) for name, shape in Layer.SHAPES.items()} for _ in range(layers)]
        self.columns = [{name: w.T.contiguous() for name, w in row.items()} for row in self.rows]
        self.sites = [{n: Active(size, torch.bfloat16, "cuda") for n, size in INPUTS.items()} for _ in range(layers)]
        self.norm = torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.caches = [
            [torch.randn(KV_HEADS, CONTEXT, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
            for _ in range(layers)
        ]
        self.rotary = rotary(CONTEXT)
        self.position = torch.tensor([CONTEXT - 1], dtype=torch.int32, device="cuda")
        self.start = torch.randn(HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.streams = [torch.empty_like(self.start) for _ in range(2)]
        self.nothing = torch.zeros(1, HIDDEN, device="cuda")
        self.q = torch.empty(HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        self.parts = {
            n: torch.empty(layouts[n].splits(inputs), out, device="cuda") for n, (out, inputs) in Layer.SHAPES.items()
        }

    def multiply(self, layer: int, name: str, x: torch.Tensor | None, early: bool = False) -> torch.Tensor:
        """The product with a dense vector, or with the active entries of the site."""
        if x is None:
            site, columns = self.sites[layer][name], self.columns[layer][name]
            return active_product(columns, site, self.parts[name], self.layouts[name], early=early)
        weight = self.rows[layer][name]
        return torch.mv(weight, x)[None] if self.kinds[name] == "cuBLAS, mv" else F.linear(x[None], weight)

    def produce(self, layer: int, name: str, how: Callable[..., None], mode: str) -> None:
        """Run the kernel that makes a product's input; in calibration its threshold is set first."""
        if mode == "calibrate":
            how(sparse=False)
            x = self.sites[layer][name]
            x.threshold.copy_(x.dense.float().abs().quantile(SPARSITY))
        how(sparse=mode != "dense")

    def run(
        self, mode: str, attention: Callable[..., torch.Tensor] | None, products: bool = True, early: bool = False
    ) -> torch.Tensor:
        """One token through all layers; `mode` is `dense`, `sparse` or `calibrate`; `early` is for our own kernels."""
        hidden, added = self.start, self.nothing
        for layer, sites in enumerate(self.sites):

            def product(name: str, x: torch.Tensor, layer: int = layer) -> torch.Tensor:
                if not products:
                    return self.parts[name][:1]
                return self.multiply(layer, name, x if mode == "dense" else None, early)

            def norm(
                name: str, source: torch.Tensor, plus: torch.Tensor, into: torch.Tensor, layer: int = layer
            ) -> None:
                x = self.sites[layer][name]
                self.produce(layer, name, partial(add_norm, source, plus, self.norm, into, x, early=early), mode)

            norm("qkv", hidden, added, self.streams[0])
            keys, values = self.caches[layer]
            heads(product("qkv", sites["qkv"].dense), self.rotary, self.position, self.q, keys, values, early=early)
            mixed = self.q if attention is None else attention(self.q[None, :, None], keys[None], values[None])
            flat = mixed.reshape(1, -1)
            if mode != "dense":
                self.produce(layer, "o", partial(gather, flat, sites["o"], early=early), mode)
            norm("gate_up", self.streams[0], product("o", flat[0]), self.streams[1])
            inner = product("gate_up", sites["gate_up"].dense)
            self.produce(layer, "down", partial(gate_up, inner, sites["down"], early=early), mode)
            hidden, added = self.streams[1], product("down", sites["down"].dense)
        return hidden.float() + added.float().sum(0)

    def share(self) -> float:
        """Active inputs weighted by the weights that they meet."""
        met = used = 0
        for sites in self.sites:
            for name, x in sites.items():
                met += INPUTS[name] * Layer.SHAPES[name][0]
                used += int(x.count.sum()) * Layer.SHAPES[name][0]
        return used / met


def stack_error(layers: int = 2) -> float:
    """The sparse stack against the dense one whose inputs below the threshold are set to zero, product by product."""
    stack = Stack(layers, {n: c[0] for n, c in LAYOUTS.items()}, dict.fromkeys(INPUTS, "cuBLAS, linear"))
    attend = dense_attention("flash", causal=False)
    stack.run("calibrate", attend)
    worst = 0.0
    for number, sites in enumerate(stack.sites):
        for name, x in sites.items():
            expected = reference.active_product(stack.rows[number][name], x.dense, float(x.threshold))
            worst = max(worst, error_of(stack.multiply(number, name, None).sum(0), expected))
    return worst


def early_error(layers: int = 4, rounds: int = 20) -> float:
    """Kernels that are launched early against the same ones in order: the largest difference, which must be none."""
    stack = Stack(layers, {n: c[0] for n, c in LAYOUTS.items()}, dict.fromkeys(INPUTS, "cuBLAS, linear"))
    attend = dense_attention("flash", causal=False)
    stack.run("calibrate", attend)
    worst = 0.0
    for mode in ("sparse", "dense"):
        kept: dict[bool, torch.Tensor] = {}

        def keep(mode: str, early: bool, kept: dict[bool, torch.Tensor] = kept) -> None:
            kept[early] = stack.run(mode, attend, early=early)

        graphed([partial(keep, mode, False)]).run()
        torch.cuda.synchronize()
        launch = graphed([partial(keep, mode, True)])
        for _ in range(rounds):
            launch.run()
            torch.cuda.synchronize()
            worst = max(worst, float((kept[True] - kept[False]).abs().max()))
    return worst


def dense_error() -> float:
    """The dense stack against the same layer in plain PyTorch."""
    stack = Stack(1, {n: c[0] for n, c in LAYOUTS.items()}, dict.fromkeys(INPUTS, "cuBLAS, linear"))
    stack.run("dense", None, products=False)
    got = stack.run("dense", dense_attention("flash", causal=False))
    w, x = stack.rows[0], stack.start.double()
    normed = F.rms_norm(x, (HIDDEN,), eps=1e-5)
    qkv = (w["qkv"].double() @ normed).view(-1, HEAD_DIM)
    cosine, sine = (t[-1].double() for t in stack.rotary)
    first, second = qkv[: HEADS + KV_HEADS].chunk(2, -1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    keys, values = (c.double() for c in stack.caches[0])
    keys[:, -1], values[:, -1] = turned[HEADS:], qkv[HEADS + KV_HEADS :]
    mixed = F.scaled_dot_product_attention(turned[None, :HEADS, None], keys[None], values[None], enable_gqa=True)
    x = x + w["o"].double() @ mixed.flatten()
    gate, up = (w["gate_up"].double() @ F.rms_norm(x, (HIDDEN,), eps=1e-5)).chunk(2)
    return error_of(got, x + w["down"].double() @ (F.silu(gate) * up))


def stack_row(layers: int, layouts: dict[str, Columns], kinds: dict[str, str], early: bool) -> dict[str, Any]:
    stack = Stack(layers, layouts, kinds)
    shapes = (stack.q[None, :, None], *(c[None] for c in stack.caches[0]))
    backends = {
        n: (lambda n=n: graphed([lambda: dense_attention(n, causal=False)(*shapes)]))
        for n in ("flash", "cuDNN", "efficient")
    }
    attention, _, tried = fastest(backends, 5)
    attend = dense_attention(attention, causal=False)
    stack.run("calibrate", attend)
    share = stack.share()
    orders = (False, True) if early else (False,)
    dense, sparse = (
        fastest({str(x): (lambda m=m, x=x: graphed([lambda: stack.run(m, attend, early=x)])) for x in orders}, 7)
        for m in ("dense", "sparse")
    )
    first, second = (side[0] == "True" for side in (dense, sparse))
    sides = {
        "dense, cuBLAS": dense[1],
        "active columns": sparse[1],
        "dense, without attention": graphed([lambda: stack.run("dense", None, early=first)]),
        "active columns, without attention": graphed([lambda: stack.run("sparse", None, early=second)]),
        "all but the products (bound)": graphed([lambda: stack.run("dense", attend, products=False, early=first)]),
    }
    row = compare("dense, cuBLAS", sides, {"active columns": 1 / share}, 15)
    row["early_launch_ms"] = {"dense, cuBLAS": dense[2], "active columns": sparse[2]}
    row["layouts"] = {name: str(layout) for name, layout in layouts.items()}
    medians = {name: side["median_ms"] for name, side in row["sides"].items()}
    products = 1 - medians["all but the products (bound)"] / medians["dense, cuBLAS"]
    row["bound"] = (
        f"products are {products:.3f} of the dense time: at most {amdahl(products, 1 / share):.2f}x at this share"
    )
    row["ratio_without_attention"] = medians["dense, without attention"] / medians["active columns, without attention"]
    row |= {"active": share, "amdahl_bound": amdahl(products, 1 / share), "attention": attention, "attention_ms": tried}
    row |= {"layers": layers, "batch": 1, "context": CONTEXT, "model": f"{LABEL}, {layers} of {LAYERS} layers"}
    row["milliseconds_per_token"] = {name: medians[name] for name in ("dense, cuBLAS", "active columns")}
    row["joules"] = {side: joules(sides[side]) for side in ("dense, cuBLAS", "active columns")}
    return row


def main() -> None:
    part = Part("gemv")
    torch.manual_seed(0)
    errors: dict[str, float] = {}

    def compile_one(key: str, name: str, layout: Columns) -> None:
        errors[key] = product_error(*Layer.SHAPES[name], layout)

    for name, layouts in LAYOUTS.items():
        for layout in layouts:
            key = f"{name}, {layout}"
            part.attempt(f"compile {key}", partial(compile_one, key, name, layout))
    part.attempt("compile the sparse stack", stack_error)
    part.attempt("compile the dense stack", dense_error)
    with part.turn():
        for key, error in errors.items():
            part.check(key, lambda error=error: error, 1e-4)  # type: ignore[misc]
        part.check("dense layer against plain PyTorch", dense_error, 2e-2)
        part.check("products of the sparse stack", stack_error, 1e-4)
        early = part.check("early launches change nothing", early_error, 0.0, required=False)
        chosen = {name: layouts[0] for name, layouts in LAYOUTS.items()}
        for name in Layer.SHAPES:
            part.row(f"gemv {name}", partial(product_row, name), 5)
            done = part.result["rows"].get(f"gemv {name}", {}).get("layout")
            chosen[name] = next((layout for layout in LAYOUTS[name] if str(layout) == done), chosen[name])
        kinds = {n: part.result["rows"].get(f"gemv {n}", {}).get("baseline", "cuBLAS, linear") for n in Layer.SHAPES}
        part.row("gemv stack", lambda: stack_row(4 if part.quick else LAYERS, chosen, kinds, early), 8, 1.5)


if __name__ == "__main__":
    main()
