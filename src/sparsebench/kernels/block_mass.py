"""The attention weights of dense attention summed over blocks of queries and keys, without writing the weights.

Each program goes over the keys of a tile of queries twice: for what their softmax is divided by, and for the sums.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

TILE = 64
"""Queries, and keys, of a tile; blocks divide it."""
WIDEST = 256
"""Largest head dimension."""
DTYPES = (torch.bfloat16, torch.float16)


@triton.jit
def _logits(tile, k, key_at, place, last, scale, k_key, keys, DIM: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr):
    d = tl.arange(0, D)
    where = k + key_at.to(tl.int64)[:, None] * k_key + d[None, :]
    found = tl.load(where, (key_at < keys)[:, None] & (d < DIM)[None, :], other=0.0)
    logits = tl.dot(tile, tl.trans(found)) * scale
    seen = key_at[None, :] <= last[:, None]
    if WINDOW > 0:
        seen &= key_at[None, :] > (place - WINDOW)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit(do_not_specialize=["queries", "keys", "begun", "start", "blocks", "columns"])
def _sum(
    q, k, positions, lengths, mass, queries, keys, begun, start, blocks, columns, scale, q_row, q_head, q_query, k_row,
    k_head, k_key, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, SIZE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    at = (
        begun + tl.program_id(0) * TILE + tl.arange(0, TILE) - start
    )  # places of queries; blocks begin before the first
    d = tl.arange(0, D)
    inside = (at >= 0) & (at < queries)
    where = q + row * q_row + head * q_head + at.to(tl.int64)[:, None] * q_query + d[None, :]
    tile = tl.load(where, inside[:, None] & (d < DIM)[None, :], other=0.0)
    place = tl.load(positions + row * queries + at, inside, other=-1).to(tl.int32)
    last = tl.minimum(place, tl.minimum(tl.load(lengths + row).to(tl.int32), keys) - 1)
    first = 0
    if WINDOW > 0:
        lowest = tl.min(tl.where(place >= 0, tl.maximum(place - WINDOW + 1, 0), keys), 0)
        first = (tl.minimum(lowest, keys) // TILE) * TILE
    end = tl.max(last, 0) + 1
    k += row * k_row + (head // GROUP) * k_head
    best = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for begin in tl.range(first, end, TILE):
        logits = _logits(tile, k, begin + tl.arange(0, TILE), place, last, scale, k_key, keys, DIM, D, WINDOW)
        now = tl.maximum(best, tl.max(logits, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp2(best - shift) + tl.sum(tl.exp2(logits - shift[:, None]), 1)
        best = now
    shift = tl.where(best == float("-inf"), 0.0, best)
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    BLOCKS: tl.constexpr = TILE // SIZE
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    for begin in tl.range(first, end, TILE):
        logits = _logits(tile, k, begin + tl.arange(0, TILE), place, last, scale, k_key, keys, DIM, D, WINDOW)
        weights = tl.exp2(logits - shift[:, None]) * share[:, None]
        by_key = tl.sum(tl.reshape(weights, [TILE, BLOCKS, SIZE]), 2)
        sums = tl.sum(tl.reshape(by_key, [BLOCKS, SIZE, BLOCKS]), 1)
        column = begin // SIZE + tl.arange(0, BLOCKS)
        heads = row * tl.num_programs(1) + head
        place_of = mass + (heads * blocks + block)[:, None] * columns + column[None, :]
        tl.store(place_of, sums, (block < blocks)[:, None] & (column < columns)[None, :])


def suits(query: torch.Tensor, key: torch.Tensor, size: int) -> bool:
    """Whether the kernel takes such tensors and blocks."""
    known = query.dtype == key.dtype and query.dtype in DTYPES and key.shape[-1] <= WIDEST
    return known and size <= TILE and TILE % size == 0


def block_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    start: int,
    size: int,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention weights summed over blocks, float32 `[rows, heads, query_blocks, key_blocks]`.

    Args:
        query: `[rows, heads, queries, head_dim]`, of one of `DTYPES`; all rows begin at one position.
        key: `[rows, kv_heads, keys, head_dim]`; `kv_heads` divides `heads`.
        positions: Position of each query, `[rows, queries]`, contiguous; -1 behind a row's last.
        lengths: Keys of each row, `[rows]`.
        start: Position of the first query; blocks of queries are counted from the one that holds it.
        size: Queries and keys of a block, by position; divides `TILE`.
        scaling: What scores are multiplied with.
        window: A query sees the last `window` keys only; None: all.
    """
    rows, heads, queries, dim = query.shape
    keys = key.shape[2]
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    begun = start // size * size
    blocks, columns = (start + queries - 1) // size - start // size + 1, -(-keys // size)
    mass = torch.zeros(rows, heads, blocks, columns, dtype=torch.float32, device=query.device)
    _sum[(triton.cdiv(start + queries - begun, TILE), heads, rows)](
        query, key, positions.contiguous(), lengths, mass, queries, keys, begun, start, blocks, columns,
        scaling * math.log2(math.e), *query.stride()[:3], *key.stride()[:3], GROUP=heads // key.shape[1], DIM=dim,
        D=max(16, triton.next_power_of_2(dim)), WINDOW=window or 0, SIZE=size, TILE=TILE, num_warps=4,
    )  # fmt: skip
    return mass
