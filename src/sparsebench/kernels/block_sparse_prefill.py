"""Prefill attention over selected blocks of keys: a flash-style forward pass that reads only the chosen blocks.

Each (head, block of queries) has an ascending list of key blocks. The last blocks of a list, those that can reach the
causal diagonal, are masked; the others need no mask. Programs of one key-value head run side by side, the longest lists
first, so that its keys stay in the second-level cache.

Online softmax: Milakov and Gimelshein 2018; tiling: Dao 2023 (FlashAttention-2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError
from sparsebench.kernels.selection import select


@triton.jit
def _tile(base, rows, START, BLOCK: tl.constexpr, D: tl.constexpr, LIMIT, BOUNDED: tl.constexpr, TMA: tl.constexpr):
    """Rows `START` to `START + BLOCK` of one head's keys or values; `rows` is where the head begins."""
    if TMA:
        tile = base.load([rows + START, 0])
    else:
        at = START + tl.arange(0, BLOCK)
        where = base + (rows + at).to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
        if BOUNDED:
            tile = tl.load(where, mask=(at < LIMIT)[:, None], other=0.0)
        else:
            tile = tl.load(where)
    return tile


@triton.jit
def _step(
    q, keys, values, rows, start, best, total, acc, query_at, tokens, scale, BN: tl.constexpr, D: tl.constexpr,
    MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of keys in the online softmax; exponents are of base 2."""
    k = _tile(keys, rows, start, BN, D, tokens, MASKED, TMA)
    logits = tl.dot(q, tl.trans(k))
    if MASKED:
        at = start + tl.arange(0, BN)
        logits = tl.where((at[None, :] <= query_at[:, None]) & (at < tokens)[None, :], logits, float("-inf"))
    now = tl.maximum(best, tl.max(logits, 1) * scale)
    if MASKED:  # a query that has met no key yet keeps its maximum of minus infinity
        shift = tl.where(now == float("-inf"), 0.0, now)
    else:
        shift = now
    p = tl.exp2(logits * scale - shift[:, None])
    decay = tl.exp2(best - shift)
    total = total * decay + tl.sum(p, 1)
    v = _tile(values, rows, start, BN, D, tokens, MASKED, TMA)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None])
    return now, total, acc


@triton.jit(do_not_specialize=["width", "query_blocks"])
def _attend(
    q, keys, values, out, blocks, counts, tokens, width, query_blocks, scale, GROUP: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, KEY_BLOCK: tl.constexpr, TAIL: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    block = query_blocks - 1 - (program // GROUP) % query_blocks
    kv_head = program // (GROUP * query_blocks)
    head = kv_head * GROUP + program % GROUP
    row = head * query_blocks + block
    count = tl.load(counts + row)
    chosen = blocks + row.to(tl.int64) * width

    query_at = block * BM + tl.arange(0, BM)
    where = (head.to(tl.int64) * tokens + query_at)[:, None] * D + tl.arange(0, D)[None, :]
    inside = (query_at < tokens)[:, None]
    tile = tl.load(q + where, mask=inside, other=0.0)
    rows = kv_head * tokens
    best = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    PARTS: tl.constexpr = KEY_BLOCK // BN
    free = 0 if MERGED else tl.maximum(count - TAIL, 0)
    for i in tl.range(0, free * PARTS, num_stages=STAGES):
        start = tl.load(chosen + i // PARTS) * KEY_BLOCK + (i % PARTS) * BN
        best, total, acc = _step(
            tile, keys, values, rows, start, best, total, acc, query_at, tokens, scale, BN, D, False, TMA
        )  # fmt: skip
    for i in tl.range(free * PARTS, count * PARTS, num_stages=STAGES if MERGED else 1):
        start = tl.load(chosen + i // PARTS) * KEY_BLOCK + (i % PARTS) * BN
        best, total, acc = _step(
            tile, keys, values, rows, start, best, total, acc, query_at, tokens, scale, BN, D, True, TMA
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Tiling:
    """How the kernel is laid out on the device; never changes what is computed.

    Attributes:
        keys: Keys of one tile; divides the key block.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
        tma: Whether keys and values come through the bulk tensor copy engine (compute capability 9.0).
        merged: Whether one loop masks every tile, instead of a loop without masks and one for the tiles at the
            diagonal, which begins with nothing loaded.
        registers: Registers of a thread at most, so that two programs share a multiprocessor; 0: what the compiler
            takes.
    """

    keys: int = 64
    warps: int = 8
    stages: int = 3
    tma: bool = False
    merged: bool = False
    registers: int = 0

    def __str__(self) -> str:
        parts = [f"{self.keys} keys", f"{self.warps} warps", f"{self.stages} stages"]
        parts += ["tma"] * self.tma + ["merged"] * self.merged
        return ", ".join(parts + [f"{self.registers} registers"] * bool(self.registers))


def attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    counts: torch.Tensor,
    *,
    query_block: int = 128,
    key_block: int = 128,
    tiling: Tiling = Tiling(),
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention in which each block of queries sees the key blocks of its list alone.

    Args:
        q: `[batch, heads, tokens, head_dim]`, contiguous; head_dim 64 or 128.
        k: `[batch, kv_heads, tokens, head_dim]`, contiguous.
        v: As `k`.
        blocks: `[batch, heads, query_blocks, width]`, int32: key blocks, ascending, none beyond the diagonal.
        counts: `[batch, heads, query_blocks]`, int32: how many of a list count.
        query_block: Queries of a block.
        key_block: Keys of a block.
        tiling: How the kernel is laid out.
        out: Where to write.

    Returns:
        As `q`; zero for a query none of whose keys is selected.

    Raises:
        InputError: Shapes that do not fit each other or the tiling.
    """
    batch, heads, tokens, dim = q.shape
    kv_heads = k.shape[1]
    query_blocks = -(-tokens // query_block)
    if heads % kv_heads or k.shape != v.shape or k.shape != (batch, kv_heads, tokens, dim):
        raise InputError(f"queries {tuple(q.shape)} do not fit keys {tuple(k.shape)} and values {tuple(v.shape)}")
    if counts.shape != (batch, heads, query_blocks) or blocks.shape[:3] != counts.shape:
        raise InputError(f"lists {tuple(blocks.shape)} do not fit {query_blocks} blocks of queries in {heads} heads")
    if key_block % tiling.keys:
        raise InputError(f"a tile of {tiling.keys} keys does not divide a block of {key_block}")
    if out is None:
        out = torch.empty_like(q)
    if not all(x.is_contiguous() for x in (q, k, v, blocks, counts, out)):
        raise InputError("queries, keys, values, lists and the output must be contiguous")
    keys, values = k, v
    if tiling.tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        flat = [batch * kv_heads * tokens, dim]
        keys, values = (TensorDescriptor(x, flat, [dim, 1], [tiling.keys, dim]) for x in (k, v))
    _attend[(batch * heads * query_blocks,)](
        q, keys, values, out, blocks, counts, tokens, blocks.shape[-1], query_blocks,
        math.log2(math.e) / math.sqrt(dim), GROUP=heads // kv_heads, D=dim, BM=query_block, BN=tiling.keys,
        KEY_BLOCK=key_block, TAIL=max(1, query_block // key_block), TMA=tiling.tma, STAGES=tiling.stages,
        MERGED=tiling.merged, num_warps=tiling.warps, **({"maxnreg": tiling.registers} if tiling.registers else {}),
    )  # fmt: skip
    return out


def block_budget(
    tokens: int, density: float, query_block: int, key_block: int, sink: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key blocks that each block of queries may see, and how many it keeps: a share of them, with sink and diagonal.

    Returns:
        Two int32 tensors `[query_blocks]` on the CPU.
    """
    block = torch.arange(-(-tokens // query_block))
    last = ((block + 1) * query_block).clamp(max=tokens) - 1
    valid = last // key_block + 1
    least = (sink + max(1, query_block // key_block)) * torch.ones_like(valid)
    keep = torch.minimum(torch.maximum((density * valid).round().long(), least), valid)
    return valid.int(), keep.int()


def pooled_scores(q: torch.Tensor, k: torch.Tensor, query_block: int, key_block: int) -> torch.Tensor:
    """Scores of key blocks by the product of mean query and mean key, `[batch, heads, query_blocks, key_blocks]`.

    float32; a last block that is not full is averaged over the tokens that it has.

    Raises:
        InputError: Queries or keys that are not contiguous.
    """
    batch, kv_heads, _, dim = k.shape
    pooled_q, pooled_k = _block_means(q, query_block), _block_means(k, key_block)
    grouped = pooled_q.view(batch, kv_heads, -1, dim)  # heads of a group lie side by side
    return torch.matmul(grouped, pooled_k.transpose(-1, -2)).view(batch, q.shape[1], -1, pooled_k.shape[2])


@triton.jit(do_not_specialize=["blocks"])
def _means(x, out, tokens, blocks, BLOCK: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr):
    block = tl.program_id(0)
    head = tl.program_id(1)
    within = tl.arange(0, WIDE)
    at = block * BLOCK + within
    d = tl.arange(0, D)
    where = x + (head.to(tl.int64) * tokens + at)[:, None] * D + d[None, :]
    tile = tl.load(where, mask=((within < BLOCK) & (at < tokens))[:, None], other=0.0).to(tl.float32)
    size = tl.minimum(BLOCK, tokens - block * BLOCK)
    tl.store(out + (head * blocks + block) * D + d, tl.sum(tile, 0) / size)


def _block_means(x: torch.Tensor, block: int) -> torch.Tensor:
    """Means of blocks of tokens, `[batch, heads, blocks, head_dim]`, float32, in one pass."""
    batch, heads, tokens, dim = x.shape
    if not x.is_contiguous():
        raise InputError(f"queries and keys {tuple(x.shape)} must be contiguous")
    blocks = -(-tokens // block)
    out = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=x.device)
    _means[(blocks, batch * heads)](
        x, out, tokens, blocks, BLOCK=block, WIDE=triton.next_power_of_2(block), D=dim, num_warps=2
    )
    return out


def select_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    valid: torch.Tensor,
    keep: torch.Tensor,
    width: int,
    *,
    query_block: int = 128,
    key_block: int = 128,
    sink: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of the best blocks by pooled scores, with sink and diagonal; see `select` and `block_budget`."""
    scores = pooled_scores(q, k, query_block, key_block)
    diagonal = max(1, query_block // key_block)
    return select(scores, valid, keep, width, sink=sink, local=diagonal)
