"""What is counted of a mask over keys, in one pass: pairs, the union over the heads of a group, and touched tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

REGION = 8192
"""Pairs of a head that one program looks at."""


@triton.jit(do_not_specialize=["queries", "keys", "groups"])
def _count(
    mask, positions, lengths, counts, queries, keys, groups, m_row, m_head, m_query, m_key, GROUP: tl.constexpr,
    WINDOW: tl.constexpr, TQ: tl.constexpr, TK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    at = tl.program_id(1) * TQ + tl.arange(0, TQ)
    key_at = tl.program_id(2) * (TILES * TK) + tl.arange(0, TILES * TK)
    place = tl.load(positions + row * queries + at, at < queries, other=-1).to(tl.int32)
    last = tl.minimum(place, tl.minimum(tl.load(lengths + row).to(tl.int32), keys) - 1)
    seen = key_at[None, :] <= last[:, None]
    if WINDOW > 0:
        seen &= key_at[None, :] > (place - WINDOW)[:, None]
    kept = 0
    touched = 0
    union = tl.zeros([TQ, TILES * TK], tl.int32)
    in_tile = tl.sum(tl.sum(tl.reshape(seen.to(tl.int32), [TQ, TILES, TK]), 2), 0)
    if tl.max(in_tile, 0) > 0:
        for member in range(GROUP):
            where = mask + row * m_row + (group * GROUP + member).to(tl.int64) * m_head
            where = where + at.to(tl.int64)[:, None] * m_query + key_at.to(tl.int64)[None, :] * m_key
            chosen = tl.load(where, seen, other=0).to(tl.int32)
            kept += tl.sum(tl.sum(chosen, 1), 0)
            union |= chosen
            of_tile = tl.max(tl.max(tl.reshape(chosen, [TQ, TILES, TK]), 2), 0)
            touched += tl.sum(tl.where(of_tile > 0, in_tile, 0), 0)
    program = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    tl.store(counts + program * 3, kept)
    tl.store(counts + program * 3 + 1, tl.sum(tl.sum(union, 1), 0))
    tl.store(counts + program * 3 + 2, touched)


def count(
    keep: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    groups: int,
    tile: tuple[int, int],
    window: int | None = None,
) -> torch.Tensor:
    """Pairs of a mask that queries see, without those that they do not.

    Args:
        keep: Bool `[rows, masks, queries, keys]`.
        positions: Position of each query, `[rows, queries]`, contiguous; -1 where there is none.
        lengths: Keys of each row, `[rows]`.
        groups: Into how many groups of masks, side by side, the union is taken; divides `masks`.
        tile: Queries and keys of a tile, powers of two; tiles begin at the first query and key.
        window: A query sees the last `window` keys only; None: all.

    Returns:
        int64 `[3]` on the device: pairs, summed over masks; pairs of the unions, summed over groups; and pairs seen in
        tiles of which a pair is in the mask, summed over masks.
    """
    rows, masks, queries, keys = keep.shape
    tiles = max(1, min(REGION // (tile[0] * tile[1]), triton.next_power_of_2(triton.cdiv(keys, tile[1]))))
    # The first axis alone takes more than 65,535 programs.
    grid = (rows * groups, triton.cdiv(queries, tile[0]), triton.cdiv(keys, tiles * tile[1]))
    counts = torch.empty(grid[0] * grid[1] * grid[2], 3, dtype=torch.int32, device=keep.device)
    _count[grid](
        keep.view(torch.uint8), positions.contiguous(), lengths, counts, queries, keys, groups, *keep.stride(),
        GROUP=masks // groups, WINDOW=window or 0, TQ=tile[0], TK=tile[1], TILES=tiles, num_warps=4,
    )  # fmt: skip
    return counts.sum(dim=0)
