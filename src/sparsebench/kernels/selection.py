"""Exact top-k of a row of scores as an ascending list of positions, in one program a row.

Used by both kinds of sparse attention: blocks of keys in prefill, pages of keys in decode. The k-th largest score is
found by bisection on the integers that order as the floats do, which needs no sort and no scratch memory; of equal
scores the first positions win, so a selection is a function of its scores alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError


@triton.jit(do_not_specialize=["KEEP", "PERIOD", "SINK", "LOCAL"])
def _select(
    scores, rows_valid, rows_keep, table, chosen, counts, WIDTH, KEEP, PERIOD, SINK, LOCAL, BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
):  # fmt: skip
    """One row: `rows_*` are read at `row % PERIOD` (rows of heads) or `row // -PERIOD` (rows of a batch)."""
    row = tl.program_id(0)
    group = row % PERIOD if PERIOD > 0 else row // (-PERIOD)
    valid = tl.minimum(tl.load(rows_valid + group), WIDTH)
    keep = tl.minimum(tl.minimum(tl.load(rows_keep + group), valid), KEEP)
    at = tl.arange(0, BLOCK)
    score = tl.load(scores + row.to(tl.int64) * WIDTH + at, mask=at < valid, other=float("-inf"))
    score = tl.where((at < SINK) | (at >= valid - LOCAL), float("inf"), score)
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(at < valid, order, -2147483648)
    low = tl.min(order, 0).to(tl.int64)
    high = tl.max(order, 0).to(tl.int64)
    while low < high:  # the largest threshold that at least `keep` scores reach
        middle = (low + high + 1) >> 1
        reached = tl.sum((order >= middle.to(tl.int32)).to(tl.int32), 0)
        low = tl.where(reached >= keep, middle, low)
        high = tl.where(reached == keep, middle, tl.where(reached > keep, high, middle - 1))
    threshold = low.to(tl.int32)
    above = order > threshold
    equal = (order == threshold) & (at < valid)
    room = keep - tl.sum(above.to(tl.int32), 0)
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    what = at
    if TABLE:
        what = tl.load(table + group.to(tl.int64) * WIDTH + at, mask=taken, other=0)
    tl.store(chosen + row.to(tl.int64) * KEEP + place, what, mask=taken)
    tl.store(counts + row, keep)


def select(
    scores: torch.Tensor,
    valid: torch.Tensor,
    keep: torch.Tensor,
    width: int,
    *,
    repeat: bool = False,
    sink: int = 0,
    local: int = 0,
    table: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    warps: int = 8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `keep` best of the first `valid` positions of each row, ascending.

    Args:
        scores: `[..., n]`, float32, contiguous, as are all tensors here.
        valid: Positions that a row may choose from, int32, `[groups]`.
        keep: How many each row keeps, int32, `[groups]`; at most `valid` and `width` are kept.
        width: Places in the lists that come out.
        repeat: False: row r belongs to group `r % groups` (query blocks, for each head). True: to `r // (rows /
            groups)` (heads of one sequence of a batch).
        sink: First positions that are always kept.
        local: Last valid positions that are always kept.
        table: `[groups, n]`, int32: written instead of the positions (physical pages).
        out: Where to write, for graphs.
        warps: Warps of a program.

    Returns:
        Lists `[..., width]` and counts `[...]`, int32; places beyond a count are not written.

    Raises:
        InputError: A tensor that is not contiguous: the kernel addresses by shape alone.
    """
    for tensor in (scores, valid, keep, *(() if table is None else (table,)), *(out or ())):
        if not tensor.is_contiguous():
            raise InputError(f"a tensor {tuple(tensor.shape)} of a selection is not contiguous")
    rows, n = scores.numel() // scores.shape[-1], scores.shape[-1]
    if out is None:
        out = (
            torch.zeros(*scores.shape[:-1], width, dtype=torch.int32, device=scores.device),
            torch.empty(scores.shape[:-1], dtype=torch.int32, device=scores.device),
        )
    groups = valid.numel()
    period = -(rows // groups) if repeat else groups
    _select[(rows,)](
        scores, valid, keep, scores if table is None else table, *out, n, width, period, sink, local,
        BLOCK=triton.next_power_of_2(n), TABLE=table is not None, num_warps=warps,
    )  # fmt: skip
    return out
