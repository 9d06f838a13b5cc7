"""Attention of many queries over the keys that a mask names: for simulated and, since it skips, executed methods.

Fused kernels of PyTorch take a mask as numbers that are added to scores, for each query head, and read keys beyond the
diagonal. Here the mask is read as it is, one byte a pair, for all query heads of a group where these share it; tiles
that no query sees are not read, and of tiles in which the mask names nothing no key is.

Online softmax: Milakov and Gimelshein 2018; tiling: Dao 2023 (FlashAttention-2).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

QUERIES = 64
"""Queries of a tile."""
KEYS = 64
"""Keys of a tile."""
WIDEST = 256
"""Largest head dimension."""
DTYPES = (torch.bfloat16, torch.float16)


@triton.jit(do_not_specialize=["queries", "keys"])
def _attend(
    q, k, v, mask, positions, lengths, out, queries, keys, scale, q_row, q_head, q_query, k_row, k_head, k_key, v_row,
    v_head, v_key, m_row, m_head, m_query, m_key, HEADS: tl.constexpr, GROUP: tl.constexpr, SHARE: tl.constexpr,
    DIM: tl.constexpr, D: tl.constexpr, VALUE_DIM: tl.constexpr, VD: tl.constexpr, WINDOW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    e = tl.arange(0, VD)
    inside = (at < queries)[:, None]
    where = q + row * q_row + head * q_head + at.to(tl.int64)[:, None] * q_query + d[None, :]
    tile = tl.load(where, inside & (d < DIM)[None, :], other=0.0)
    place = tl.load(positions + row * queries + at, at < queries, other=-1).to(tl.int32)
    length = tl.minimum(tl.load(lengths + row).to(tl.int32), keys)
    last = tl.minimum(place, length - 1)
    first = 0
    if WINDOW > 0:  # queries without a place see nothing, and no tile has to be read for them
        lowest = tl.min(tl.where(place >= 0, tl.maximum(place - WINDOW + 1, 0), keys), 0)
        first = (tl.minimum(lowest, keys) // BN) * BN
    best = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, VD], tl.float32)
    for start in tl.range(first, tl.max(last, 0) + 1, BN):
        key_at = start + tl.arange(0, BN)
        seen = key_at[None, :] <= last[:, None]
        if WINDOW > 0:
            seen &= key_at[None, :] > (place - WINDOW)[:, None]
        marks = mask + row * m_row + (head // SHARE) * m_head + at.to(tl.int64)[:, None] * m_query
        seen &= tl.load(marks + key_at.to(tl.int64)[None, :] * m_key, seen, other=0) != 0
        read = tl.max(seen.to(tl.int32), 0)
        if tl.max(read, 0) != 0:
            there = (read != 0)[:, None]
            of_keys = k + row * k_row + (head // GROUP) * k_head + key_at.to(tl.int64)[:, None] * k_key + d[None, :]
            logits = tl.dot(tile, tl.trans(tl.load(of_keys, there & (d < DIM)[None, :], other=0.0))) * scale
            logits = tl.where(seen, logits, float("-inf"))
            now = tl.maximum(best, tl.max(logits, 1))
            shift = tl.where(now == float("-inf"), 0.0, now)
            p = tl.exp2(logits - shift[:, None])
            decay = tl.exp2(best - shift)
            of_values = v + row * v_row + (head // GROUP) * v_head + key_at.to(tl.int64)[:, None] * v_key + e[None, :]
            values = tl.load(of_values, there & (e < VALUE_DIM)[None, :], other=0.0)
            total = total * decay + tl.sum(p, 1)
            acc = tl.dot(p.to(values.dtype), values, acc * decay[:, None])
            best = now
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # a query with no key gives zeros
    where = out + ((row * HEADS + head) * queries + at)[:, None] * VALUE_DIM + e[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), inside & (e < VALUE_DIM)[None, :])


def suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes such tensors: many queries, in half precision, heads that are not too wide."""
    same = query.dtype == key.dtype == value.dtype
    return query.shape[2] > 1 and same and query.dtype in DTYPES and max(key.shape[-1], value.shape[-1]) <= WIDEST


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Softmax attention over the keys that are kept and seen; a query with none gives zeros.

    Args:
        query: `[rows, heads, queries, head_dim]`, of one of `DTYPES`.
        key: `[rows, kv_heads, keys, head_dim]`; `kv_heads` divides `heads`. Keys that nobody reads may be anything.
        value: `[rows, kv_heads, keys, value_dim]`.
        keep: Keys that are read, bool, broadcastable to `[rows, heads, queries, keys]`, or with `kv_heads` in the place
            of heads; keys that a query does not see may be among them.
        positions: Position of each query, `[rows, queries]`, contiguous; -1 where there is none.
        lengths: Keys of each row, `[rows]`.
        scaling: What scores are multiplied with.
        window: A query sees the last `window` keys only; None: all.

    Returns:
        `[rows, heads, queries, value_dim]`, sums in float32.
    """
    rows, heads, queries, dim = query.shape
    kv_heads, keys, value_dim = key.shape[1], key.shape[2], value.shape[-1]
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    mask = keep.expand(rows, keep.shape[1], queries, keys).view(torch.uint8)
    out = torch.empty(rows, heads, queries, value_dim, dtype=query.dtype, device=query.device)
    _attend[(triton.cdiv(queries, QUERIES), heads, rows)](
        query, key, value, mask, positions.contiguous(), lengths, out, queries, keys, scaling * math.log2(math.e),
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *mask.stride(), HEADS=heads,
        GROUP=heads // kv_heads, SHARE=heads // keep.shape[1], DIM=dim, D=max(16, triton.next_power_of_2(dim)),
        VALUE_DIM=value_dim, VD=max(16, triton.next_power_of_2(value_dim)), WINDOW=window or 0, BM=QUERIES, BN=KEYS,
        num_warps=4 if max(dim, value_dim) <= 128 else 8,
    )  # fmt: skip
    return out
