"""Exact top-k of a row of scores, in one program a row: as an ascending list of positions, or as a mask.

Used by both kinds of sparse attention: blocks of keys in prefill, pages of keys in decode; and by simulated methods,
which need masks. The k-th largest score is found among the integers that order as the floats do: each pass over the
row, held in registers, counts those between two bounds in equal bins, and leaves the bin that has it, so that a few
passes do, without a sort and without scratch memory. Of equal scores the first positions win, so a selection is a
function of its scores alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError

WIDEST = 2**15
"""Scores of the longest row that one program holds."""
BITS = 5
"""Bins of a pass, as a logarithm: on an H200 32 are faster than 64 and more."""


@triton.jit
def _taken(score, inside, keep, BITS: tl.constexpr):
    """Which of a row's scores `inside` are its `keep` highest, and how many of these there are up to each position.

    No more are asked for than are inside.
    """
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # both zeros are one
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    least = tl.min(tl.where(inside, order, 2147483647), 0)
    height = tl.where(inside, (order - least).to(tl.uint32, bitcast=True), 0)  # what overflows is right unsigned
    span = tl.max(height, 0)
    first = span - span
    room = keep
    bins = tl.arange(0, 1 << BITS)
    while span > 0:  # the threshold lies from `first` to `first + span`, and `room` of what is there are to be taken
        exponent = (span.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        shift = tl.maximum(exponent + 1 - BITS, 0).to(tl.uint32)
        within = inside & (height >= first) & (height - first <= span)
        counts = tl.histogram(((height - first) >> shift).to(tl.int32), 1 << BITS, mask=within)
        reached = tl.cumsum(counts, 0, reverse=True)
        best = tl.sum((reached >= room).to(tl.int32), 0) - 1
        of_best = tl.sum(tl.where(bins == best, counts, 0), 0)
        with_best = tl.sum(tl.where(bins == best, reached, 0), 0)
        begins = best.to(tl.uint32) << shift
        rest = tl.minimum(span - begins, ((span - span + 1) << shift) - 1)
        first += begins
        span = tl.where(with_best == room, 0, rest).to(tl.uint32)
        room = tl.where(with_best == room, room, room - (with_best - of_best))
    above = inside & (height > first)
    equal = inside & (height == first)
    ranks = tl.cumsum((above.to(tl.uint32) << 16) | equal.to(tl.uint32), 0)  # neither has more than 16 bits
    equals = (ranks & 0xFFFF).to(tl.int32)
    return above | (equal & (equals <= room)), (ranks >> 16).to(tl.int32) + tl.minimum(equals, room)


@triton.jit(do_not_specialize=["KEEP", "PERIOD", "SINK", "LOCAL"])
def _select(
    scores, rows_valid, rows_keep, table, chosen, counts, WIDTH, KEEP, PERIOD, SINK, LOCAL, BLOCK: tl.constexpr,
    TABLE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One row: `rows_*` are read at `row % PERIOD` (rows of heads) or `row // -PERIOD` (rows of a batch)."""
    row = tl.program_id(0)
    group = row % PERIOD if PERIOD > 0 else row // (-PERIOD)
    valid = tl.minimum(tl.load(rows_valid + group), WIDTH)
    keep = tl.minimum(tl.minimum(tl.load(rows_keep + group), valid), KEEP)
    at = tl.arange(0, BLOCK)
    score = tl.load(scores + row.to(tl.int64) * WIDTH + at, mask=at < valid, other=float("-inf"))
    sink = tl.minimum(SINK, valid)
    local = tl.maximum(valid - LOCAL, sink)
    sinks = tl.minimum(sink, keep)  # those that are taken
    locals = tl.minimum(valid - local, keep - sinks)
    taken, rank = _taken(score, (at >= sink) & (at < local), keep - sinks - locals, BITS)
    place = tl.where(at < sink, at, tl.where(at < local, sinks + rank - 1, keep - locals + at - local))
    taken = taken | (at < sinks) | ((at >= local) & (at < local + locals))
    what = at
    if TABLE:
        what = tl.load(table + group.to(tl.int64) * WIDTH + at, mask=taken, other=0)
    tl.store(chosen + row.to(tl.int64) * KEEP + place, what, mask=taken)
    tl.store(counts + row, keep)


@triton.jit(do_not_specialize=["WIDTH"])
def _mask(
    scores,
    rows_keep,
    rows_begin,
    rows_end,
    chosen,
    WIDTH,
    RANGED: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    keep = tl.minimum(tl.load(rows_keep + row), WIDTH)
    if RANGED:
        begin = tl.load(rows_begin + row)
        end = tl.load(rows_end + row)
        inside &= (at >= begin) & (at < end)
        keep = tl.minimum(keep, tl.maximum(end - begin, 0))
    score = tl.load(scores + row * WIDTH + at, mask=inside, other=float("-inf"))
    taken, _ = _taken(score, inside, keep, BITS)
    tl.store(chosen + row * WIDTH + at, taken.to(tl.uint8), mask=at < WIDTH)


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
        BLOCK=triton.next_power_of_2(n), TABLE=table is not None, BITS=BITS, num_warps=warps,
    )  # fmt: skip
    return out


def select_mask(
    scores: torch.Tensor, keep: torch.Tensor, among: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """The `keep` highest scores along the last dimension; of equal ones the first.

    Args:
        scores: `[..., n]`, float32, without NaN; n at most `WIDEST`.
        keep: How many of each row, integers, broadcastable to `[...]`.
        among: The first place of each row that may be taken, and the first behind it that may not be, integers,
            broadcastable to `[...]`; None: all. Scores of other places are not read.

    Returns:
        Bool `[..., n]`.
    """
    scores, width = scores.contiguous(), scores.shape[-1]
    taken = torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)
    counts, *ends = (x.to(torch.int32).expand(scores.shape[:-1]).contiguous() for x in (keep, *(among or ())))
    if rows := counts.numel():
        block = max(16, triton.next_power_of_2(width))
        begin, end = ends or (counts, counts)
        _mask[(rows,)](
            scores, counts, begin, end, taken, width, RANGED=among is not None, BLOCK=block, BITS=BITS,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return taken.view(torch.bool)
