"""The keys with the highest scores of each query, of many queries, without writing the scores.

Each program takes a tile of queries. It goes over their keys again and again, counts those whose score is at least one
of three thresholds, and narrows for each query the bounds of the threshold that leaves as many keys as are wanted. A
second kernel writes the mask. Both multiply the same tiles, so that a score is the same number each time.

The first thresholds are those of a normal distribution with the scores' mean and variance. Then come two around the
line between the bounds, as far apart as the rank of a sample's quantile varies (Floyd and Rivest 1975), and the middle;
if that does not do, halves and quarters of the integers that order as floats do, so that at most some 25 passes are
needed, with ties as without. Of equal scores the first keys win.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

QUERIES = 128
"""Queries of a tile."""
KEYS = 64
"""Keys of a tile."""
WIDEST = 256
"""Largest head dimension."""
DTYPES = (torch.bfloat16, torch.float16)
RESIDENT: dict[str, int] = {} if torch.version.hip else {"maxnreg": 128}
"""Registers of a thread, so that two programs share a multiprocessor and one counts while the other multiplies."""
GUESSES = 8
"""Passes with thresholds from the scores' distribution."""


@triton.jit
def _order(x):
    """Integers that order as floats do; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _float(order):
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def _queries(q, begins, ends, at, inside, keys, q_query, DIM: tl.constexpr, D: tl.constexpr):
    """A tile of queries, and the range of keys that each sees."""
    d = tl.arange(0, D)
    tile = tl.load(q + at.to(tl.int64)[:, None] * q_query + d[None, :], inside[:, None] & (d < DIM)[None, :], other=0.0)
    begin = tl.load(begins + at, inside, other=0)
    return tile, begin, tl.minimum(tl.load(ends + at, inside, other=0), keys)


@triton.jit
def _span(begin, end, inside, keys, BN: tl.constexpr):
    """Where a tile's keys begin and end, and between which of them every query sees all."""
    there = end > begin
    first = (tl.min(tl.where(there, begin, keys), 0) // BN) * BN
    return first, tl.max(tl.where(there, end, 0), 0), tl.max(begin, 0), tl.min(tl.where(inside, end, keys), 0)


@triton.jit
def _scores(tile, k, start, begin, end, whole, last, k_key, DIM: tl.constexpr, D: tl.constexpr, BN: tl.constexpr):
    """Products of a tile; those of keys that their query does not see are lowest, where not all are seen."""
    key_at = start + tl.arange(0, BN)
    d = tl.arange(0, D)
    where = k + key_at.to(tl.int64)[:, None] * k_key + d[None, :]
    found = tl.load(where, (key_at < last)[:, None] & (d < DIM)[None, :], other=0.0)
    scores = tl.dot(tile, tl.trans(found))
    if not whole:
        seen = (key_at[None, :] >= begin[:, None]) & (key_at[None, :] < end[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _between(low, high, quarters):
    """A float so many quarters of the way from one to another, counted in floats."""
    first, apart = _order(low).to(tl.int64), _order(high).to(tl.int64) - _order(low).to(tl.int64)
    return _float((first + apart * quarters // 4).to(tl.int32))


@triton.jit(do_not_specialize=["queries", "keys"])
def _bound(
    q, k, begins, ends, wanted, guesses, lows, highs, rooms, queries, keys, q_row, q_head, q_query, k_row, k_head,
    k_key, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, GUESSES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Bounds of the scores of each query, and how many keys at the lower one are taken."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = at < queries
    tile, begin, end = _queries(
        q + row * q_row + head * q_head, begins + row * queries, ends + row * queries, at, inside, keys, q_query, DIM, D
    )
    visible = tl.maximum(end - begin, 0)
    keep = tl.minimum(tl.load(wanted + row * queries + at, inside, other=0), visible)
    k += row * k_row + (head // GROUP) * k_head
    first, last, inner, outer = _span(begin, end, inside, keys, BN)

    least = tl.full([BM], float("inf"), tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    squares = tl.zeros([BM], tl.float32)
    for start in tl.range(first, last, BN):
        whole = (start >= inner) & (start + BN <= outer)
        scores = _scores(tile, k, start, begin, end, whole, last, k_key, DIM, D, BN)
        seen = scores > float("-inf")
        least = tl.minimum(least, tl.min(tl.where(seen, scores, float("inf")), 1))
        most = tl.maximum(most, tl.max(scores, 1))
        scores = tl.where(seen, scores, 0.0)
        total += tl.sum(scores, 1)
        squares += tl.sum(scores * scores, 1)
    number = tl.maximum(visible, 1).to(tl.float32)
    mean = total / number
    spread = tl.sqrt(tl.maximum(squares / number - mean * mean, 0.0))

    # Between `low`, which at least as many keys reach as are wanted, and `high`, which fewer do, or just as many.
    low = tl.where(visible > 0, least, 0.0)
    high = _float(_order(tl.where(visible > 0, most, 0.0)) + 1)
    of_low = visible
    of_high = tl.zeros([BM], tl.int32)
    high = tl.where(keep == visible, low, high)
    of_high = tl.where(keep == visible, visible, of_high)
    step = 0
    left = (of_high != keep) & (_order(high).to(tl.int64) - _order(low).to(tl.int64) > 1)
    while tl.max(left.to(tl.int32), 0) > 0:
        among = tl.maximum(of_low - of_high, 1).to(tl.float32)
        if step == 0:
            guess = tl.load(guesses + row * queries + at, inside, other=0.0)
            near = 0.1 * spread * (1.0 + 0.3 * guess * guess)
            a = mean + spread * guess - near
            b = mean + spread * guess
            c = mean + spread * guess + near
        elif step < GUESSES:
            line = low + (high - low) * ((of_low - keep).to(tl.float32) / among)
            near = 0.5 * (high - low) / tl.sqrt(among)
            a = line - near
            b = 0.5 * low + 0.5 * high
            c = line + near
        else:
            a = _between(low, high, 1)
            b = _between(low, high, 2)
            c = _between(low, high, 3)
        lowest = _float(_order(low) + 1)
        highest = _float(_order(high) - 1)
        a = tl.minimum(tl.maximum(a, lowest), highest)
        b = tl.minimum(tl.maximum(b, lowest), highest)
        c = tl.minimum(tl.maximum(c, lowest), highest)
        of_a = tl.zeros([BM], tl.int32)
        of_b = tl.zeros([BM], tl.int32)
        of_c = tl.zeros([BM], tl.int32)
        for start in tl.range(first, last, BN):
            whole = (start >= inner) & (start + BN <= outer)
            scores = _scores(tile, k, start, begin, end, whole, last, k_key, DIM, D, BN)
            of_a += tl.sum((scores >= a[:, None]).to(tl.int32), 1)
            of_b += tl.sum((scores >= b[:, None]).to(tl.int32), 1)
            of_c += tl.sum((scores >= c[:, None]).to(tl.int32), 1)
        for which in tl.static_range(3):
            at_it = a if which == 0 else (b if which == 1 else c)
            reach = of_a if which == 0 else (of_b if which == 1 else of_c)
            more = left & (reach > keep) & (at_it > low)
            fewer = left & (reach <= keep) & (at_it < high)
            low = tl.where(more, at_it, low)
            of_low = tl.where(more, reach, of_low)
            high = tl.where(fewer, at_it, high)
            of_high = tl.where(fewer, reach, of_high)
        left = (of_high != keep) & (_order(high).to(tl.int64) - _order(low).to(tl.int64) > 1)
        step += 1

    to = (row * HEADS + head) * queries + at.to(tl.int64)
    tl.store(lows + to, low, inside)
    tl.store(highs + to, high, inside)
    tl.store(rooms + to, keep - of_high, inside)


@triton.jit(do_not_specialize=["queries", "keys"])
def _mark(
    q, k, begins, ends, lows, highs, rooms, chosen, queries, keys, q_row, q_head, q_query, k_row, k_head, k_key,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The keys whose score is at least the upper bound, and the first `room` of those at the lower."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = at < queries
    tile, begin, end = _queries(
        q + row * q_row + head * q_head, begins + row * queries, ends + row * queries, at, inside, keys, q_query, DIM, D
    )
    k += row * k_row + (head // GROUP) * k_head
    first, last, inner, outer = _span(begin, end, inside, keys, BN)
    of_query = (row * HEADS + head) * queries + at.to(tl.int64)
    low = tl.load(lows + of_query, inside, other=0.0)
    high = tl.load(highs + of_query, inside, other=float("inf"))
    room = tl.load(rooms + of_query, inside, other=0)
    tied = tl.max(room, 0) > 0
    run = tl.zeros([BM], tl.int32)
    to = chosen + of_query[:, None] * keys
    for start in tl.range(first, last, BN):
        key_at = start + tl.arange(0, BN)
        whole = (start >= inner) & (start + BN <= outer)
        scores = _scores(tile, k, start, begin, end, whole, last, k_key, DIM, D, BN)
        taken = (scores >= high[:, None]).to(tl.int32)
        if tied:
            equal = ((scores == low[:, None]) & (scores < high[:, None])).to(tl.int32)
            rank = tl.cumsum(equal, 1) + run[:, None]
            taken |= equal & (rank <= room[:, None]).to(tl.int32)
            run += tl.sum(equal, 1)
        tl.store(to + key_at[None, :], taken.to(tl.uint8), inside[:, None] & (key_at < keys)[None, :])


def suits(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the kernel takes such tensors: many queries, in half precision, heads that are not too wide."""
    return query.shape[2] > 1 and query.dtype == key.dtype and query.dtype in DTYPES and key.shape[-1] <= WIDEST


def top_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    counts: torch.Tensor,
    among: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The `counts` keys with the highest products of those that each query sees; of equal ones the first.

    Args:
        query: `[rows, heads, queries, head_dim]`, of one of `DTYPES`.
        key: `[rows, kv_heads, keys, head_dim]`, finite where it is seen; `kv_heads` divides `heads`.
        counts: How many of each query, integers, `[rows, queries]`; more than it sees are all.
        among: The first key that each query sees, and the first behind those, integers, `[rows, queries]`.

    Returns:
        Bool `[rows, heads, queries, keys]`.
    """
    rows, heads, queries, dim = query.shape
    keys = key.shape[2]
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    begin, end, wanted = (x.to(torch.int32).expand(rows, queries).contiguous() for x in (*among, counts))
    visible = (end - begin).clamp(min=1)
    share = (wanted / visible).clamp(0.0001, 0.9999)
    guesses = (math.sqrt(2) * torch.erfinv(1 - 2 * share)).float().contiguous()
    low, high = (torch.empty(rows, heads, queries, dtype=torch.float32, device=query.device) for _ in range(2))
    room = torch.empty(rows, heads, queries, dtype=torch.int32, device=query.device)
    chosen = torch.zeros(rows, heads, queries, keys, dtype=torch.uint8, device=query.device)
    where = queries, keys, *query.stride()[:3], *key.stride()[:3]
    sizes: dict[str, int] = {"HEADS": heads, "GROUP": heads // key.shape[1], "DIM": dim, "BM": QUERIES, "BN": KEYS}
    sizes |= {"D": max(16, triton.next_power_of_2(dim)), "num_warps": 8}
    grid = triton.cdiv(queries, QUERIES), heads, rows
    _bound[grid](
        query, key, begin, end, wanted, guesses, low, high, room, *where, **sizes, GUESSES=GUESSES, **RESIDENT
    )  # fmt: skip
    _mark[grid](query, key, begin, end, low, high, room, chosen, *where, **sizes)
    return chosen.view(torch.bool)
