"""Block-sparse prefill against the strongest dense attention: attention alone, with selection, and a stack of layers.

    python benchmarks/gpu/prefill.py [--seconds N] [--out DIR]

Selection is block top-k: mean query times mean key of blocks of 128, the best tenth of the causal blocks, with the
first and the diagonal one. Inputs are random, so lists are spread evenly: the least helpful case for the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from protocol import Launch, Part, compare, error_of, fastest, graphed, joules
from shape import (
    BACKENDS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LABEL,
    LAYERS,
    VOCABULARY,
    Layer,
    Pointwise,
    dense_attention,
    random_weight,
    rotary,
)

from sparsebench.kernels import reference
from sparsebench.kernels.block_sparse_prefill import Tiling, attend_blocks, block_budget, select_blocks
from sparsebench.speed.protocol import amdahl

BLOCK = 128
DENSITY = 0.1
TILINGS = [
    Tiling(64, 8, 3),
    Tiling(128, 8, 2, tma=True),
    Tiling(128, 8, 2, merged=True),
    Tiling(128, 8, 2, tma=True, merged=True),
    Tiling(128, 8, 3, tma=True, merged=True),
    Tiling(64, 8, 2, tma=True, registers=128),
    Tiling(64, 8, 2, tma=True, merged=True, registers=128),
    Tiling(32, 8, 3, tma=True, merged=True, registers=128),
]


@dataclass
class Case:
    """Random queries, keys and values of one length, and the lists of their blocks."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    valid: torch.Tensor
    keep: torch.Tensor
    width: int

    @classmethod
    def random(cls, tokens: int, heads: int = HEADS, kv_heads: int = KV_HEADS, density: float = DENSITY) -> Case:
        q, k, v = (
            torch.randn(1, n, tokens, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
            for n in (heads, kv_heads, kv_heads)
        )
        valid, keep = block_budget(tokens, density, BLOCK, BLOCK)
        return cls(q, k, v, valid.cuda(), keep.cuda(), -(-int(keep.max()) // 16) * 16)

    def select(self, q: torch.Tensor | None = None, k: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = self.q if q is None else q, self.k if k is None else k
        return select_blocks(q, k, self.valid, self.keep, self.width)

    def attend(self, lists: tuple[torch.Tensor, torch.Tensor], tiling: Tiling) -> torch.Tensor:
        return attend_blocks(self.q, self.k, self.v, *lists, tiling=tiling)

    def density(self) -> float:
        """Realised share of the causal (query, key) pairs."""
        tokens = self.q.shape[2]
        blocks = tokens // BLOCK
        pairs = (int(self.keep.sum()) - blocks) * BLOCK**2 + blocks * BLOCK * (BLOCK + 1) // 2
        return pairs / (tokens * (tokens + 1) / 2)


def small_error(tiling: Tiling) -> float:
    """Against the reference, at a length that fills no block."""
    case = Case.random(1999, 8, 2, 0.3)
    lists = case.select()
    return error_of(case.attend(lists, tiling), reference.attend_blocks(case.q, case.k, case.v, *lists))


def large_error(case: Case, lists: tuple[torch.Tensor, torch.Tensor], tiling: Tiling, rows: int = 64) -> float:
    """Against a float64 softmax over the listed keys, for some queries of some heads."""
    got = case.attend(lists, tiling)
    tokens = case.q.shape[2]
    generator = torch.Generator().manual_seed(0)
    ours, expected = [], []
    for _ in range(rows):
        head, query = (int(torch.randint(n, (1,), generator=generator)) for n in (HEADS, tokens))
        block = query // BLOCK
        chosen = lists[0][0, head, block, : int(lists[1][0, head, block])].long()
        keys = (chosen[:, None] * BLOCK + torch.arange(BLOCK, device="cuda")).flatten()
        keys = keys[keys <= query]
        kv = head // (HEADS // KV_HEADS)
        weights = torch.softmax(case.k[0, kv, keys].double() @ case.q[0, head, query].double() / HEAD_DIM**0.5, 0)
        expected.append(weights @ case.v[0, kv, keys].double())
        ours.append(got[0, head, query])
    return error_of(torch.stack(ours), torch.stack(expected))


def select_error(tokens: int) -> float:
    """Rows of lists that differ from the reference's, as a share."""
    from sparsebench.kernels.block_sparse_prefill import pooled_scores

    case = Case.random(tokens, 8, 2)
    lists, counts = case.select()
    expected = reference.select(pooled_scores(case.q, case.k, BLOCK, BLOCK), case.valid, case.keep, sink=1, local=1)
    rows = zip(lists.flatten(0, 2).tolist(), counts.flatten().tolist(), expected, strict=True)
    return sum(row[:count] != wanted for row, count, wanted in rows) / len(expected)


def dense_candidates(case: Case, names: Sequence[str] = ()) -> dict[str, Callable[[], Launch]]:
    """SDPA by each backend, with a group's keys shared or repeated; of these names, if there are any."""

    def make(name: str, grouped: bool) -> Callable[[], Launch]:
        def launch() -> Launch:
            k, v = (x if grouped else x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (case.k, case.v))
            attend = dense_attention(name, causal=True, grouped=grouped)
            return graphed([lambda: attend(case.q, k, v)])

        return launch

    every = {
        f"{name} SDPA{'' if grouped else ', repeated keys'}": make(name, grouped)
        for name in BACKENDS
        for grouped in (True, False)
    }
    return {name: make for name, make in every.items() if not names or name in names}


def flex(case: Case, lists: tuple[torch.Tensor, torch.Tensor], compiled: Callable[..., Any]) -> Launch:
    """FlexAttention over the same lists: full blocks apart from the diagonal one, which has the causal mask."""
    from torch.nn.attention.flex_attention import BlockMask

    blocks, counts = lists
    tokens = case.q.shape[2]
    n = tokens // BLOCK

    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x[..., :n], (0, n - min(n, x.shape[-1])))

    diagonal = torch.arange(n, device="cuda", dtype=torch.int32).expand(1, HEADS, n)[..., None]
    options: dict[str, Any] = {}
    if "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters:
        options["compute_q_blocks"] = False
    mask = BlockMask.from_kv_blocks(
        torch.ones_like(counts),
        padded(diagonal).contiguous(),
        counts - 1,  # lists ascend and end with the diagonal
        padded(blocks).contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=_causal,
        seq_lengths=(tokens, tokens),
        **options,
    )
    return Launch(lambda: compiled(case.q, case.k, case.v, block_mask=mask, enable_gqa=True))


def _causal(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q >= k


def contenders(part: Part) -> list[str]:
    """Dense candidates that took at most one and a half times as long as the fastest at the length before, if any."""
    rows = [row for row in part.result["rows"].values() if "candidates_ms" in row]
    times = {n: t for n, t in rows[-1]["candidates_ms"].items() if isinstance(t, float)} if rows else {}
    return [name for name, time in times.items() if time <= 1.5 * min(times.values())]


def attention_row(tokens: int, tiling: Tiling, compiled: Callable[..., Any] | None, part: Part) -> dict[str, Any]:
    case = Case.random(tokens)
    lists = case.select()
    part.check(f"{tokens} tokens, sampled queries", lambda: large_error(case, lists, tiling), 1e-2)
    name, dense, tried = fastest(dense_candidates(case, contenders(part)), 2)
    sides = {
        name: dense,
        "block-sparse, selection apart": graphed([lambda: case.attend(lists, tiling)]),
        "block-sparse, selection included": graphed([lambda: case.attend(case.select(), tiling)]),
        "selection alone": graphed([case.select]),
    }
    if compiled is not None:
        try:
            comparator = flex(case, lists, compiled)
            error = error_of(comparator.run(), case.attend(lists, tiling))  # type: ignore[arg-type]
            part.check(f"{tokens} tokens, FlexAttention and this kernel agree", lambda: error, 1e-2)
            sides["FlexAttention, selection apart"] = comparator
        except Exception as problem:
            part.failed(f"FlexAttention at {tokens}", problem)
    density = case.density()
    ideal = {side: 1 / density for side in sides if side not in (name, "selection alone")}
    row = compare(name, sides, ideal)
    row |= {"candidates_ms": tried, "density": density, "tiling": str(tiling), "tokens": tokens, "batch": 1}
    row["joules"] = {side: joules(sides[side]) for side in (name, "block-sparse, selection included")}
    return row


def stack_row(tokens: int, layers: int, tiling: Tiling, dense_name: str, steps: Pointwise) -> dict[str, Any]:
    """Prefill of a stack from embeddings to the last token's logits: with all 32 layers, time to first token."""
    stack = [Layer() for _ in range(layers)]
    head = random_weight(VOCABULARY, HIDDEN)
    start = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
    hidden = torch.empty_like(start)
    turn = rotary(tokens)
    budget = Case.random(BLOCK)
    valid, keep = (x.cuda() for x in block_budget(tokens, DENSITY, BLOCK, BLOCK))
    budget.valid, budget.keep, budget.width = valid, keep, -(-int(keep.max()) // 16) * 16
    plain = dense_attention(dense_name.split()[0], causal=True, grouped="repeated" not in dense_name)

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if "repeated" in dense_name:
            k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
        return plain(q, k, v)

    def sparse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend_blocks(q, k, v, *budget.select(q, k), tiling=tiling)

    def run(attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        hidden.copy_(start)
        for layer in stack:
            layer(hidden, turn, attend, steps)
        last = torch.nn.functional.rms_norm(hidden[-1:], (HIDDEN,), eps=1e-5)
        return torch.nn.functional.linear(last, head)

    def nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q

    with torch.no_grad():
        sides = {
            f"dense, {dense_name}": Launch(lambda: run(dense)),
            "block-sparse attention": Launch(lambda: run(sparse)),
            "no attention (bound)": Launch(lambda: run(nothing)),
        }
        row = compare(next(iter(sides)), sides)
    times = {name: side["median_ms"] for name, side in row["sides"].items()}
    share = 1 - times["no attention (bound)"] / times[f"dense, {dense_name}"]
    row["bound"] = f"attention is {share:.3f} of the dense time: at most {amdahl(share):.2f}x"
    row |= {"attention_share": share, "amdahl_bound": amdahl(share), "layers": layers, "tokens": tokens, "batch": 1}
    row |= {"model": f"{LABEL}, {layers} of {LAYERS} layers", "compiled_pointwise": steps.compiled}
    return row


def best_tiling(part: Part, tokens: int) -> Tiling:
    """The fastest of the tilings that are right."""
    good = [t for t in TILINGS if part.check(f"1,999 tokens, {t}", lambda t=t: small_error(t), 1e-2, required=False)]  # type: ignore[misc]
    case = Case.random(tokens)
    lists = case.select()
    name, _, tried = fastest({str(t): (lambda t=t: Launch(lambda: case.attend(lists, t))) for t in good}, 5)
    part.result["tilings_ms"] = tried
    print(f"tilings at {tokens}: {tried}", flush=True)
    return next(t for t in good if str(t) == name)


def main() -> None:
    part = Part("prefill")
    torch.manual_seed(0)
    steps, compiled = Pointwise(), None
    lengths = (4_096, 8_192) if part.quick else (32_768, 131_072)

    def compile_flex() -> None:
        nonlocal compiled
        from torch.nn.attention.flex_attention import flex_attention

        flexible = torch.compile(flex_attention, dynamic=False)
        for tokens in lengths:
            case = Case.random(tokens)
            flex(case, case.select(), flexible).run()
        compiled = flexible

    def compile_steps() -> None:
        nonlocal steps
        steps = Pointwise.compile()

    for tiling in TILINGS:
        part.attempt(f"compile {tiling}", lambda tiling=tiling: small_error(tiling))  # type: ignore[misc]
    part.attempt("compile FlexAttention", compile_flex)
    part.attempt("compile element-wise steps", compile_steps)
    with part.turn():
        part.check("lists at 32k", lambda: select_error(32_768), 0.0)
        tiling = best_tiling(part, lengths[0])
        part.result["tiling"] = str(tiling)
        for tokens in lengths:
            name = f"prefill attention {tokens >> 10}k"
            part.row(name, lambda tokens=tokens: attention_row(tokens, tiling, compiled, part), 12, 5.0)  # type: ignore[misc]
        rows = part.result["rows"]
        for tokens, layers in zip(lengths, (LAYERS, 2), strict=True):
            dense = rows.get(f"prefill attention {tokens >> 10}k", {}).get("baseline", "flash SDPA")
            count = layers if part.left() > 55 else min(layers, 8)
            part.row(
                f"prefill stack {tokens >> 10}k",
                lambda t=tokens, n=count, d=dense: stack_row(t, n, tiling, d, steps),
                15,
            )  # type: ignore[misc]


if __name__ == "__main__":
    main()
