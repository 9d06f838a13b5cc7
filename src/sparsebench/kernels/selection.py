"""Exact top-k of a row of scores, in one program a row: as an ascending list of positions, or as a mask.

Used by both kinds of sparse attention: blocks of keys in prefill, pages of keys in decode; and by simulated methods,
which need masks. The k-th largest score is found among the integers that order as the floats do: each pass over the
row, held in registers, counts in one sum those that reach either of two pivots, and leaves a third of the range; once
as many reach its lower end as are asked for, the passes end. No sort is needed and no scratch memory. Of equal scores
the first positions win, so a selection is a function of its scores alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError
from sparsebench.kernels.early import begin, launch

WIDEST = 2**15
"""Scores of the longest row that one program holds."""


@triton.jit
def _places(BLOCK: tl.constexpr):
    """Positions of a row, 32 beside each other, since a word of bits has so many."""
    return tl.arange(0, BLOCK // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]


@triton.jit
def _wider(low, high, other_low, other_high):
    return tl.minimum(low, other_low), tl.maximum(high, other_high)


@triton.jit
def _taken(score, at, first, end, keep):
    """Which of a row's scores at positions from `first` to before `end` are its `keep` highest, at most all."""
    inside = (at >= first) & (at < end)
    bits = (tl.where(inside, score, float("-inf")) + 0.0).to(tl.int32, bitcast=True)  # both zeros are one
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low, high = tl.reduce((tl.ravel(tl.where(inside, order, 2147483647)), tl.ravel(order)), 0, _wider)
    reach = end - first
    over = reach - reach
    # The threshold lies from `low` to `high`; `reach` scores are at least `low`, and `over` are higher than `high`.
    while (low < high) & (reach > keep):
        third = tl.maximum((high.to(tl.int64) - low) // 3, 1)
        middle = (low + third).to(tl.int32)
        upper = tl.minimum(low + 2 * third, high).to(tl.int32)
        # The lowest reaches neither, so that neither count has more than 15 bits.
        both = tl.sum((order >= middle).to(tl.int32) | ((order >= upper).to(tl.int32) << 16))
        at_middle, at_upper = both & 0xFFFF, both >> 16
        over = tl.where(at_upper >= keep, over, tl.where(at_middle >= keep, at_upper, at_middle))
        high = tl.where(at_upper >= keep, high, tl.where(at_middle >= keep, upper, middle) - 1)
        low = tl.where(at_upper >= keep, upper, tl.where(at_middle >= keep, middle, low))
        reach = tl.where(at_upper >= keep, at_upper, tl.where(at_middle >= keep, at_middle, reach))
    # Where more reach the threshold than are wanted, the first of the equal ones are taken: up to `last`.
    before, last = tl.where(reach > keep, first, end) - 1, end - 1
    while before < last:
        half = before + (last - before) // 2
        enough = over + tl.sum((inside & (order == low) & (at <= half)).to(tl.int32)) >= keep
        before = tl.where(enough, before, half + 1)
        last = tl.where(enough, half, last)
    return order + ((at >= first) & (at <= last)).to(tl.int32) > low


@triton.jit
def _counted(word):
    """Bits of each word that are set."""
    bits = word.to(tl.uint32, bitcast=True)
    bits -= (bits >> 1) & 0x55555555
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _listed(chosen, count, first):
    """Write `count` positions from `first` on."""
    for start in range(0, count, 32):
        at = start + tl.arange(0, 32)
        tl.store(chosen + at, first + at, mask=at < count)


@triton.jit(do_not_specialize=["KEEP", "PERIOD", "SINK", "LOCAL"])
def _select(
    scores, rows_valid, rows_keep, chosen, counts, WIDTH, KEEP, PERIOD, SINK, LOCAL, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One row: `rows_*` are read at `row % PERIOD` (rows of heads) or `row // -PERIOD` (rows of a batch)."""
    begin(EARLY)
    row = tl.program_id(0)
    group = row % PERIOD if PERIOD > 0 else row // (-PERIOD)
    valid = tl.minimum(tl.load(rows_valid + group), WIDTH)
    keep = tl.minimum(tl.minimum(tl.load(rows_keep + group), valid), KEEP)
    sink = tl.minimum(SINK, valid)
    local = tl.maximum(valid - LOCAL, sink)
    sinks = tl.minimum(sink, keep)  # those that are taken
    locals = tl.minimum(valid - local, keep - sinks)
    at = _places(BLOCK)
    score = tl.load(scores + row.to(tl.int64) * WIDTH + at, mask=at < WIDTH, other=0.0)
    taken = _taken(score, at, sink, local, keep - sinks - locals)
    chosen += row.to(tl.int64) * KEEP
    # A bit for each 32 positions in a word, which is walked through by itself; gathered, a word is one thread's alone.
    first = tl.arange(0, BLOCK // 32)
    words = tl.gather(tl.sum(tl.where(taken, 1 << tl.arange(0, 32)[None, :], 0), 1), first, 0)
    count = _counted(words)
    place = sinks + tl.cumsum(count, 0) - count
    for bit in tl.static_range(32):
        listed = (words >> bit) & 1
        tl.store(chosen + place, first * 32 + bit, mask=listed != 0)
        place += listed
    _listed(chosen, sinks, 0)
    _listed(chosen + keep - locals, locals, local)
    tl.store(counts + row, keep)


@triton.jit(do_not_specialize=["WIDTH"])
def _mask(scores, rows_keep, rows_begin, rows_end, chosen, WIDTH, RANGED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = _places(BLOCK)
    first, end = WIDTH - WIDTH, WIDTH
    if RANGED:
        first = tl.load(rows_begin + row)
        end = tl.maximum(tl.load(rows_end + row), first)
    score = tl.load(scores + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    taken = _taken(score, at, first, end, tl.minimum(tl.load(rows_keep + row), end - first))
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
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    warps: int | None = None,
    early: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `keep` best of the first `valid` positions of each row, ascending.

    Args:
        scores: `[..., n]`, float32, contiguous, as are all tensors here; n at most `WIDEST`.
        valid: Positions that a row may choose from, int32, `[groups]`.
        keep: How many each row keeps, int32, `[groups]`; at most `valid` and `width` are kept.
        width: Places in the lists that come out.
        repeat: False: row r belongs to group `r % groups` (query blocks, for each head). True: to `r // (rows /
            groups)` (heads of one sequence of a batch).
        sink: First positions that are always kept.
        local: Last valid positions that are always kept.
        out: Where to write, for graphs.
        warps: Warps of a program; None: by the length of a row.
        early: Launch before the kernel ahead has ended.

    Returns:
        Lists `[..., width]` and counts `[...]`, int32; places beyond a count are not written.

    Raises:
        InputError: A tensor that is not contiguous: the kernel addresses by shape alone.
    """
    for tensor in (scores, valid, keep, *(out or ())):
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
    block = _block(n)
    _select[(rows,)](
        scores, valid, keep, *out, n, width, period, sink, local, BLOCK=block, num_warps=warps or _warps(block),
        **launch(early),
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
        block = _block(width)
        first, end = ends or (counts, counts)
        _mask[(rows,)](
            scores, counts, first, end, taken, width, RANGED=among is not None, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    return taken.view(torch.bool)


def _block(width: int) -> int:
    """Positions of a program: a power of two, as tiles are."""
    return max(32, 1 << (width - 1).bit_length())


def _warps(block: int) -> int:
    """Warps of a program: within one nothing waits for others, and more than eight wait longer than they save."""
    return min(8, max(1, block // 1024))
