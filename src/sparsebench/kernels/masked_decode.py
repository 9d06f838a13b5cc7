"""Attention of one query a sequence over the keys that a mask names, for steps of decode.

Fused kernels for attention with masks split their work by rows and heads alone, so that a step over long rows keeps a
few multiprocessors busy. Here a program reads `SPAN` keys of one key-value head, for all query heads of its group
(flash decoding, Dao et al. 2023); keys that the mask does not name are not read. Spans are as long whatever the batch,
and are added up in their order, so that what a row gets depends neither on the other rows nor on its padding.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

SPAN = 512
"""Keys that one program reads."""
TILE = 64
"""Keys that it reads at once."""
ADDED = 16
"""Spans that are added up at once."""
WIDEST = 256
"""Largest head dimension."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit(do_not_specialize=["keys", "spans"])
def _attend(
    q, k, v, mask, part, extent, keys, spans, scale, q_row, q_head, k_row, k_head, k_key, v_row, v_head, v_key, m_row,
    m_head, m_key, GROUP: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, VALUE_DIM: tl.constexpr,
    VD: tl.constexpr, SHARED: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    span = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    g = tl.arange(0, WIDE)
    d = tl.arange(0, D)
    e = tl.arange(0, VD)
    heads = head * GROUP + g
    inside = (g < GROUP)[:, None]
    queries = tl.load(q + row * q_row + heads[:, None] * q_head + d[None, :], inside & (d < DIM)[None, :], other=0.0)
    best = tl.full([WIDE], float("-inf"), tl.float32)
    total = tl.zeros([WIDE], tl.float32)
    acc = tl.zeros([WIDE, VD], tl.float32)
    first = span * SPAN
    for start in tl.range(first, tl.minimum(first + SPAN, keys), TILE):
        at = start + tl.arange(0, TILE)
        there = at < keys
        if SHARED:
            named = tl.load(mask + row * m_row + at.to(tl.int64) * m_key, there, other=0) != 0
            read = named
            seen = named[None, :]
        else:
            where = mask + row * m_row + heads[:, None] * m_head + at.to(tl.int64)[None, :] * m_key
            seen = tl.load(where, inside & there[None, :], other=0) != 0
            read = tl.max(seen.to(tl.int32), 0) != 0
        where = k + row * k_row + head * k_head + at.to(tl.int64)[:, None] * k_key + d[None, :]
        tile = tl.load(where, read[:, None] & (d < DIM)[None, :], other=0.0)
        logits = tl.dot(queries, tl.trans(tile), input_precision="ieee") * scale
        logits = tl.where(seen, logits, float("-inf"))
        now = tl.maximum(best, tl.max(logits, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        p = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(best - shift)
        where = v + row * v_row + head * v_head + at.to(tl.int64)[:, None] * v_key + e[None, :]
        tile = tl.load(where, read[:, None] & (e < VALUE_DIM)[None, :], other=0.0)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(tile.dtype), tile, acc * decay[:, None], input_precision="ieee")
        best = now
    place = ((row * tl.num_programs(1) + head) * GROUP + g) * spans + span
    tl.store(part + place[:, None] * VALUE_DIM + e[None, :], acc, inside & (e < VALUE_DIM)[None, :])
    tl.store(extent + place * 2, best, g < GROUP)
    tl.store(extent + place * 2 + 1, total, g < GROUP)


@triton.jit(do_not_specialize=["spans"])
def _combine(part, extent, out, spans, VALUE_DIM: tl.constexpr, VD: tl.constexpr, ADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, VD)
    highest = tl.full([ADDED], float("-inf"), tl.float32)
    for first in tl.range(0, spans, ADDED):
        span = first + tl.arange(0, ADDED)
        best = tl.load(extent + (row * spans + span) * 2, span < spans, other=float("-inf"))
        highest = tl.maximum(highest, best)
    level = tl.max(highest, 0)
    level = tl.where(level == float("-inf"), 0.0, level)
    total = 0.0
    acc = tl.zeros([VD], tl.float32)
    for first in tl.range(0, spans, ADDED):
        span = first + tl.arange(0, ADDED)
        weight = tl.exp2(tl.load(extent + (row * spans + span) * 2, span < spans, other=float("-inf")) - level)
        total += tl.sum(weight * tl.load(extent + (row * spans + span) * 2 + 1, span < spans, other=0.0), 0)
        where = part + (row * spans + span)[:, None] * VALUE_DIM + e[None, :]
        found = tl.load(where, (span < spans)[:, None] & (e < VALUE_DIM)[None, :], other=0.0)
        acc += tl.sum(found * weight[:, None], 0)
    result = acc / tl.where(total == 0.0, 1.0, total)  # a query with no key gives zeros
    tl.store(out + row * VALUE_DIM + e, result.to(out.dtype.element_ty), e < VALUE_DIM)


def suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes such tensors: one query a row, a known dtype, heads that are not too wide."""
    same = query.dtype == key.dtype == value.dtype
    return query.shape[2] == 1 and same and query.dtype in DTYPES and max(key.shape[-1], value.shape[-1]) <= WIDEST


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Softmax attention of one query a row; a query with no key gives zeros.

    Args:
        query: `[rows, heads, 1, head_dim]`, of one of `DTYPES`.
        key: `[rows, kv_heads, keys, head_dim]`; `kv_heads` divides `heads`. Keys that are not kept may be anything.
        value: `[rows, kv_heads, keys, value_dim]`.
        keep: Keys that are read, bool, broadcastable to `[rows, heads, 1, keys]`.
        scaling: What scores are multiplied with.

    Returns:
        `[rows, heads, 1, value_dim]`, sums in float32.
    """
    rows, heads, _, dim = query.shape
    kv_heads, keys, value_dim = key.shape[1], key.shape[2], value.shape[-1]
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    shared = keep.shape[1] == 1
    mask = keep.expand(rows, 1 if shared else heads, 1, keys).view(torch.uint8)
    spans, group = max(1, -(-keys // SPAN)), heads // kv_heads
    part = torch.empty(rows, heads, spans, value_dim, dtype=torch.float32, device=query.device)
    extent = torch.empty(rows, heads, spans, 2, dtype=torch.float32, device=query.device)
    out = torch.empty(rows, heads, 1, value_dim, dtype=query.dtype, device=query.device)
    wide = {"VALUE_DIM": value_dim, "VD": max(16, triton.next_power_of_2(value_dim))}
    _attend[(spans, kv_heads, rows)](
        query, key, value, mask, part, extent, keys, spans, scaling * math.log2(math.e), *query.stride()[:2],
        *key.stride()[:3], *value.stride()[:3], mask.stride(0), mask.stride(1), mask.stride(3), GROUP=group,
        WIDE=max(16, triton.next_power_of_2(group)), DIM=dim, D=max(16, triton.next_power_of_2(dim)), SHARED=shared,
        SPAN=SPAN, TILE=TILE, num_warps=4, **wide,
    )  # fmt: skip
    _combine[(rows * heads,)](part, extent, out, spans, ADDED=ADDED, num_warps=2, **wide)
    return out
