"""Decode over selected pages against the strongest dense decode, under CUDA graphs.

    python benchmarks/gpu/decode.py [--seconds N] [--out DIR]

A cache of 128k tokens, pages of 16 in random order, a budget of 4,096 tokens, selection by page bounds shared by a
group. Every graph goes round several caches, so that no call finds its index or pages in the second-level cache. What
both sides leave out: writing the new token's key and value, and the bounds of a page each time one is full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from protocol import Launch, Part, compare, error_of, fastest, flush, graphed, joules
from shape import HEAD_DIM, HEADS, KV_HEADS, LABEL, Layer, dense_attention
from torch.nn import functional as F

from sparsebench.kernels import reference
from sparsebench.kernels.paged_decode import Layout, PagedCache, PagedDecode
from sparsebench.speed.protocol import amdahl

PAGE, BUDGET = 16, 4096
LAYOUTS = {
    1: [Layout(*x, early=e) for x in ((32, 128, 4, 1), (32, 64, 4, 2), (64, 64, 4, 1)) for e in (True, False)],
    8: [Layout(*x, early=e) for x in ((4, 64, 4, 3), (8, 64, 4, 3), (8, 128, 4, 2)) for e in (True, False)],
}
WHOLE = {1: (32, 64), 8: (8, 16)}
"""Shares of the pages when this kernel reads them all."""


class Copy:
    """One layer's cache, paged for the sparse side and in one piece for the dense one, and a query."""

    def __init__(self, tokens: int, batch: int) -> None:
        self.q = torch.randn(batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        self.k, self.v = (
            torch.randn(batch, KV_HEADS, tokens, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2)
        )
        pages = -(-tokens // PAGE)
        order = torch.randperm(batch * pages, device="cuda").int().view(batch, pages)
        self.paged = PagedCache.of(self.k, self.v, PAGE, order)
        self.out = torch.empty_like(self.q)

    def step(self, layout: Layout, budget: int = BUDGET) -> PagedDecode:
        return PagedDecode(self.paged, HEADS, budget, layout)


def step_error(tokens: int, layout: Layout, batch: int = 2) -> float:
    """A step against the reference's attention over the reference's choice of pages."""
    copy = Copy(tokens, batch)
    step = copy.step(layout, BUDGET if tokens > 4 * BUDGET else 1024)
    got = step(copy.q, copy.out)
    lists = reference.select(step.scores, step.valid, step.keep, repeat=True, local=1)
    pages = step.pages
    kept = torch.zeros(batch * KV_HEADS, pages, dtype=torch.bool, device="cuda")
    for row, chosen in enumerate(lists):
        kept[row, chosen] = True
    mask = kept.view(batch, KV_HEADS, pages).repeat_interleave(PAGE, -1)[..., :tokens]
    return error_of(got, reference.attend_tokens(copy.q, copy.k, copy.v, mask))


def whole_error(tokens: int, layout: Layout, batch: int) -> float:
    """A step over every page, replayed from a graph when all else that made it is gone, against dense attention."""
    copy = Copy(tokens, batch)
    launch = all_pages([copy], layout)()
    copy.out.fill_(float("nan"))
    torch.cuda.empty_cache()
    flush()
    launch.run()
    every = torch.ones(batch, KV_HEADS, tokens, dtype=torch.bool, device="cuda")
    return error_of(copy.out, reference.attend_tokens(copy.q, copy.k, copy.v, every))


def early_error(tokens: int, rounds: int = 20) -> float:
    """Steps that are launched early against the same ones in order: the largest difference, which must be none."""
    copies = [Copy(tokens, 1) for _ in range(4)]
    plain, early = (sparse(copies, Layout(early=x)) for x in (False, True))
    worst = 0.0
    for _ in range(rounds):
        outputs = []
        for launch in (plain, early):
            for copy in copies:
                copy.out.fill_(float("nan"))
            launch.run()
            torch.cuda.synchronize()
            outputs.append(torch.stack([copy.out for copy in copies]))
        worst = max(worst, float((outputs[0] - outputs[1]).abs().max()))
    return worst


def score_error(tokens: int) -> float:
    copy = Copy(tokens, 2)
    step = copy.step(Layout())
    step(copy.q, copy.out)
    in_order = copy.paged.bounds[copy.paged.table.long()]
    low, high = (in_order[:, :, :, side].transpose(1, 2) for side in (0, 1))
    return error_of(step.scores, reference.page_scores(copy.q, low, high))


def dense_candidates(copies: list[Copy]) -> dict[str, Callable[[], Launch]]:
    """SDPA with a query a head, and with a group's heads as queries of its key-value head: equal without a mask."""

    def make(name: str, together: bool) -> Callable[[], Launch]:
        attend = dense_attention(name, causal=False, grouped=not together)

        def launch() -> Launch:
            def call(copy: Copy) -> torch.Tensor:
                batch = copy.q.shape[0]
                q = copy.q.view(batch, KV_HEADS, -1, HEAD_DIM) if together else copy.q[:, :, None]
                return attend(q, copy.k, copy.v)

            return graphed([lambda copy=copy: call(copy) for copy in copies])  # type: ignore[misc]

        return launch

    return {
        f"{name} SDPA, {'group as queries' if together else 'enable_gqa'}": make(name, together)
        for name, together in itertools.product(("flash", "cuDNN", "efficient"), (True, False))
    }


def all_pages(copies: list[Copy], layout: Layout) -> Callable[[], Launch]:
    """This kernel over every page: dense too, and a baseline if it is the fastest."""

    def launch() -> Launch:
        steps = [(copy, copy.step(layout, -(-copy.k.shape[2] // PAGE) * PAGE)) for copy in copies]
        for _, step in steps:
            step.choose_all()
        return graphed([lambda c=copy, s=step: s.attend(c.q, c.out) for copy, step in steps])  # type: ignore[misc]

    return launch


def sparse(copies: list[Copy], layout: Layout, what: str = "step") -> Launch:
    steps = [(copy, copy.step(layout)) for copy in copies]
    for copy, step in steps:
        step(copy.q, copy.out)
    calls: dict[str, Callable[[Copy, PagedDecode], object]] = {
        "step": lambda copy, step: step(copy.q, copy.out),
        "attend": lambda copy, step: step.attend(copy.q, copy.out),
        "choose": lambda copy, step: step.choose(copy.q),
    }
    return graphed([lambda c=copy, s=step: calls[what](c, s) for copy, step in steps])  # type: ignore[misc]


def linears_ms() -> float:
    """Time of one layer's linear layers for one token, by cuBLAS, as what decode takes beside attention."""
    layers = [Layer() for _ in range(3)]
    inputs = {n: torch.randn(1, s[1], dtype=torch.bfloat16, device="cuda") for n, s in Layer.SHAPES.items()}
    launch = graphed(
        [lambda layer=layer: [F.linear(inputs[n], w) for n, w in layer.weights.items()] for layer in layers]  # type: ignore[misc]
    )
    return fastest({"linear": lambda: launch}, 5)[2]["linear"]


def row(tokens: int, batch: int) -> dict[str, Any]:
    copies = [Copy(tokens, batch) for _ in range(4 if batch == 1 else 2)]
    layouts = {str(layout): layout for layout in LAYOUTS[batch]}
    best, _, tried = fastest({name: (lambda lay=lay: sparse(copies, lay)) for name, lay in layouts.items()}, 5)
    layout = layouts[best]
    candidates = dense_candidates(copies) | {
        f"this kernel, all pages, {splits} splits": all_pages(copies, Layout(splits, 64, 4, 3))
        for splits in WHOLE[batch]
    }
    name, dense, dense_tried = fastest(candidates, 3)
    sides = {
        name: dense,
        "pages, selection included": sparse(copies, layout),
        "pages, selection apart": sparse(copies, layout, "attend"),
        "selection alone": sparse(copies, layout, "choose"),
    }
    pages = -(-tokens // PAGE)
    whole, index, chosen = 2 * tokens, 2 * pages, 2 * BUDGET  # rows of head_dim values for each key-value head
    ideal = {"pages, selection included": whole / (index + chosen), "pages, selection apart": whole / chosen}
    result = compare(name, sides, ideal, 15)
    result |= {
        "candidates_ms": dense_tried,
        "layouts_ms": tried,
        "layout": str(layout),
        "tokens": tokens,
        "batch": batch,
    }
    result |= {"density": BUDGET / tokens, "page": PAGE, "budget": BUDGET}
    row_bytes = batch * KV_HEADS * HEAD_DIM * 2
    for side, rows in ((name, whole), ("pages, selection included", index + chosen)):
        values = result["sides"][side]
        values["terabytes_per_second"] = rows * row_bytes / values["median_ms"] / 1e9
    if batch == 1:
        linear = linears_ms()
        ours = result["sides"]["pages, selection included"]
        share = result["sides"][name]["median_ms"] / (result["sides"][name]["median_ms"] + linear)
        result |= {"linear_ms": linear, "attention_share": share, "amdahl_bound": amdahl(share)}
        result["bound"] = (
            f"{LABEL}: linear layers take {linear:.3f} ms a layer, attention {share:.3f} of the dense sum: "
            f"a token at most {amdahl(share):.2f}x as fast, {amdahl(share, ours['ratio']):.2f}x at this ratio"
        )
    result["joules"] = {side: joules(sides[side]) for side in (name, "pages, selection included")}
    return result


def main() -> None:
    part = Part("decode")
    torch.manual_seed(0)
    tokens = 16_384 if part.quick else 131_072
    errors: dict[str, float] = {}

    def compile_one(length: int, layout: Layout, batch: int) -> None:
        errors[f"{length} tokens, batch {batch}, {layout}"] = step_error(length, layout, batch)

    def compile_whole(length: int, splits: int, batch: int) -> None:
        errors[f"{length} tokens, batch {batch}, all pages, {splits} splits"] = whole_error(
            length, Layout(splits, 64, 4, 3), batch
        )

    for batch, layouts in LAYOUTS.items():
        for layout in layouts:
            part.attempt(f"compile {layout}, batch {batch}", partial(compile_one, 8_185, layout, batch))
        for splits in WHOLE[batch]:
            part.attempt(f"compile all pages, {splits} splits", partial(compile_whole, 8_185, splits, batch))
    part.attempt("compile selection", partial(compile_one, tokens, LAYOUTS[1][0], 1))
    with part.turn():
        for name, error in errors.items():
            part.check(name, lambda error=error: error, 1e-2)  # type: ignore[misc]
        part.check("page scores", lambda: score_error(4_096), 1e-4)
        part.check("early launches change nothing", lambda: early_error(tokens), 0.0)
        for batch in (1, 8):
            part.row(f"decode {tokens >> 10}k batch {batch}", partial(row, tokens, batch), 10, 5.0)


if __name__ == "__main__":
    main()
