"""Exact top-k of a row of scores, in one program a row: as an ascending list of positions, or as a mask.

Used by both kinds of sparse attention: blocks of keys in prefill, pages of keys in decode; and by simulated methods,
which need masks. The k-th largest score is found among the integers that order as the floats do, of which each pass
over the row, held in registers, leaves a quarter: no sort and no scratch memory. Of equal scores the first positions
win, so a selection is a function of its scores alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError

WIDEST = 2**15
"""Scores of the longest row that one program holds."""


@triton.jit
def _taken(score, inside, keep):
    """Which of a row's scores `inside` are its `keep` highest; no more are asked for than are inside."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # both zeros are one
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = tl.min(tl.where(inside, order, 2147483647), 0).to(tl.int64)
    high = tl.max(tl.where(inside, order, -2147483648), 0).to(tl.int64)
    while low < high:  # the largest threshold that at least `keep` scores reach
        step = (high - low + 3) >> 2
        first, second, third = low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
        # Three counts in one sum: none has more than 16 bits.
        reached = (
            (inside & (order >= first.to(tl.int32))).to(tl.int64)
            + ((inside & (order >= second.to(tl.int32))).to(tl.int64) << 16)
            + ((inside & (order >= third.to(tl.int32))).to(tl.int64) << 32)
        )
        counts = tl.sum(reached, 0)
        one, two, three = counts & 0xFFFF, (counts >> 16) & 0xFFFF, counts >> 32
        below = tl.where(two >= keep, third - 1, tl.where(one >= keep, second - 1, first - 1))
        low = tl.where(three >= keep, third, tl.where(two >= keep, second, tl.where(one >= keep, first, low)))
        high = tl.where(three >= keep, high, below)
        exact = (three == keep) | (two == keep) | (one == keep)
        high = tl.where(exact, low, high)
    threshold = low.to(tl.int32)
    above = inside & (order > threshold)
    equal = inside & (order == threshold)
    room = keep - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))


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
    taken = _taken(score, at < valid, keep)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    what = at
    if TABLE:
        what = tl.load(table + group.to(tl.int64) * WIDTH + at, mask=taken, other=0)
    tl.store(chosen + row.to(tl.int64) * KEEP + place, what, mask=taken)
    tl.store(counts + row, keep)


@triton.jit(do_not_specialize=["WIDTH"])
def _mask(scores, rows_keep, chosen, WIDTH, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    score = tl.load(scores + row * WIDTH + at, mask=inside, other=float("-inf"))
    taken = _taken(score, inside, tl.minimum(tl.load(rows_keep + row), WIDTH))
    tl.store(chosen + row * WIDTH + at, taken.to(tl.uint8), mask=inside)


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


def select_mask(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The `keep` highest scores along the last dimension; of equal ones the first.

    Args:
        scores: `[..., n]`, float32, without NaN; n at most `WIDEST`.
        keep: How many of each row, integers, broadcastable to `[...]`.

    Returns:
        Bool `[..., n]`.
    """
    scores, width = scores.contiguous(), scores.shape[-1]
    taken = torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)
    counts = keep.to(torch.int32).expand(scores.shape[:-1]).contiguous()
    if rows := counts.numel():
        block = max(16, triton.next_power_of_2(width))
        _mask[(rows,)](scores, counts, taken, width, BLOCK=block, num_warps=min(16, max(1, block // 512)))
    return taken.view(torch.bool)
