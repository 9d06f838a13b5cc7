"""Activation-sparse matrix-vector products in decode: only columns of active inputs are read (TEAL, Liu et al. 2024).

The kernel that produces a vector also writes which of its entries are larger than a threshold: `active` lists of
(position, value), one for each chunk of 1,024 entries, so that the order of the sums, and with it the result, is the
same every time. The product reads weights stored by columns, `[in, out]`; a program has one share of one list, so that
it goes through memory in one run, and there are enough programs to keep the memory busy. Each share writes a partial
sum; whatever reads the product adds them up. So no launch is spent on compaction or on reduction alone.

With `early` a kernel is launched while the one before it still runs (`kernels.early`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError
from sparsebench.kernels.early import begin, launch

CHUNK = 1024
"""Entries of one list."""


@triton.jit
def _compact(x, at, size, threshold, index, value, count, chunk, CHUNK: tl.constexpr):
    """Write one chunk's active entries in order."""
    active = (tl.abs(x) > threshold) & (at < size)
    place = tl.cumsum(active.to(tl.int32), 0) - 1
    tl.store(index + chunk * CHUNK + place, at, mask=active)
    tl.store(value + chunk * CHUNK + place, x, mask=active)
    tl.store(count + chunk, tl.sum(active.to(tl.int32), 0))


@triton.jit
def _summed(parts, at, size, PARTS: tl.constexpr, STRIDE):
    """Entries `at` of a vector that is stored as `PARTS` partial sums, `STRIDE` apart."""
    total = tl.zeros(at.shape, tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * STRIDE + at, mask=at < size, other=0.0).to(tl.float32)
    return total


@triton.jit
def _plain(
    parts, threshold, out, index, value, count, size, PARTS: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _summed(parts, at, size, PARTS, size).to(out.dtype.element_ty)
    tl.store(out + at, x, mask=at < size)
    if SPARSE:
        _compact(x.to(tl.float32), at, size, tl.load(threshold), index, value, count, chunk, CHUNK)


@triton.jit
def _norm(
    hidden, parts, weight, threshold, stream, out, index, value, count, size, eps, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Residual sum and RMS norm. Each program norms the whole vector and writes one chunk of it."""
    begin(EARLY)
    chunk = tl.program_id(0)
    every = tl.arange(0, BLOCK)
    whole = tl.load(hidden + every, mask=every < size, other=0.0).to(tl.float32)
    whole += _summed(parts, every, size, PARTS, size)
    whole = whole.to(stream.dtype.element_ty).to(tl.float32)
    scale = tl.rsqrt(tl.sum(whole * whole, 0) / size + eps)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(hidden + at, mask=at < size, other=0.0).to(tl.float32) + _summed(parts, at, size, PARTS, size)
    x = x.to(stream.dtype.element_ty)
    tl.store(stream + at, x, mask=at < size)
    x = (x.to(tl.float32) * scale * tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32)).to(
        out.dtype.element_ty
    )
    tl.store(out + at, x, mask=at < size)
    if SPARSE:
        _compact(x.to(tl.float32), at, size, tl.load(threshold), index, value, count, chunk, CHUNK)


@triton.jit
def _gated(
    parts, threshold, out, index, value, count, size, PARTS: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """SwiGLU of gate and up, which lie side by side."""
    begin(EARLY)
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    gate = _summed(parts, at, size, PARTS, 2 * size)
    up = _summed(parts + size, at, size, PARTS, 2 * size)
    x = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + at, x, mask=at < size)
    if SPARSE:
        _compact(x.to(tl.float32), at, size, tl.load(threshold), index, value, count, chunk, CHUNK)


@triton.jit
def _entries(index, value, first, end, BK: tl.constexpr, UNROLL: tl.constexpr):
    """Positions and values of the next `BK * UNROLL` entries of a list, `BK` at a time."""
    rows = ()
    inputs = ()
    for step in tl.static_range(UNROLL):
        slot = first + step * BK + tl.arange(0, BK)
        rows += (tl.load(index + slot, mask=slot < end, other=-1),)
        inputs += (tl.load(value + slot, mask=slot < end, other=0.0),)
    return rows, inputs


@triton.jit
def _columns(weight, rows, column, OUT, UNROLL: tl.constexpr):
    """Tiles of the weight at these positions; nothing is read for a position of -1."""
    tiles = ()
    for step in tl.static_range(UNROLL):
        row = rows[step][:, None]
        where = weight + row.to(tl.int64) * OUT + column[None, :]
        tiles += (tl.load(where, mask=(row >= 0) & (column < OUT)[None, :], other=0.0),)
    return tiles


@triton.jit
def _product(
    weight, index, value, count, parts, OUT, SHARES: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, UNROLL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One share of one list, of one token.

    While a step's tiles are summed, the next step's are on their way to registers of their own, as are the list's
    entries of the step after it: so a fixed number of loads is always in flight.
    """
    begin(EARLY)
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    token, splits = tl.program_id(2), tl.num_programs(1)
    lists = token * (splits // SHARES)
    index, value, count = index + lists * CHUNK, value + lists * CHUNK, count + lists
    parts += token * splits * OUT
    chunk = split // SHARES
    active = tl.load(count + chunk)
    each = tl.cdiv(active, SHARES)
    first = chunk * CHUNK + (split % SHARES) * each
    end = tl.minimum(first + each, chunk * CHUNK + active)
    STEP: tl.constexpr = BK * UNROLL
    acc = tl.zeros([BK, BN], tl.float32)
    rows, inputs = _entries(index, value, first, end, BK, UNROLL)
    tiles = _columns(weight, rows, column, OUT, UNROLL)
    rows, coming = _entries(index, value, first + STEP, end, BK, UNROLL)
    for start in range(first, end, STEP):
        rows_after, inputs_after = _entries(index, value, start + 2 * STEP, end, BK, UNROLL)
        tiles_after = _columns(weight, rows, column, OUT, UNROLL)
        for step in tl.static_range(UNROLL):
            acc += inputs[step][:, None] * tiles[step].to(tl.float32)
        tiles, inputs, rows, coming = tiles_after, coming, rows_after, inputs_after
    tl.store(parts + split * OUT + column, tl.sum(acc, 0), mask=column < OUT)


@dataclass(frozen=True)
class Columns:
    """How the product is laid out; never changes what is computed, except the order of its sums.

    Attributes:
        shares: Programs that share one list, each with its partial sum.
        outputs: Outputs of one program; a power of two.
        inputs: Active columns read at once; a power of two.
        unroll: How many times that in a step.
        warps: Warps of a program.
    """

    shares: int = 2
    outputs: int = 128
    inputs: int = 8
    unroll: int = 4
    warps: int = 4

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())

    def splits(self, inputs: int) -> int:
        """Partial sums of a product with so many inputs."""
        return self.shares * -(-inputs // CHUNK)


class Active:
    """A vector of `size` entries and the lists of its active ones, in memory that is used again and again."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.size, self.chunks = size, -(-size // CHUNK)
        self.dense = torch.zeros(size, dtype=dtype, device=device)
        self.index = torch.zeros(self.chunks, CHUNK, dtype=torch.int32, device=device)
        self.value = torch.zeros(self.chunks, CHUNK, dtype=torch.float32, device=device)
        self.count = torch.zeros(self.chunks, dtype=torch.int32, device=device)
        self.threshold = torch.zeros((), dtype=torch.float32, device=device)

    @property
    def lists(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positions, values and counts."""
        return self.index, self.value, self.count


@triton.jit
def _heads(
    parts, cosine, sine, position, q, keys, values, tokens, PARTS: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr,
    D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    head = tl.program_id(0)
    at = tl.arange(0, D // 2)
    size = (HEADS + 2 * KV) * D
    first = _summed(parts, head * D + at, size, PARTS, size)
    second = _summed(parts, head * D + D // 2 + at, size, PARTS, size)
    now = tl.load(position)
    if head < HEADS + KV:
        c = tl.load(cosine + now * (D // 2) + at)
        s = tl.load(sine + now * (D // 2) + at)
        first, second = first * c - second * s, second * c + first * s
    if head < HEADS:
        where = q + head * D
    elif head < HEADS + KV:
        where = keys + ((head - HEADS) * tokens + now) * D
    else:
        where = values + ((head - HEADS - KV) * tokens + now) * D
    tl.store(where + at, first.to(q.dtype.element_ty))
    tl.store(where + D // 2 + at, second.to(q.dtype.element_ty))


def heads(
    parts: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    early: bool = False,
) -> None:
    """Sum `parts`, `[splits, (heads + 2 kv_heads) head_dim]`, rotate, and write the query and the cache at a position.

    Args:
        parts: Query, key and value side by side.
        rotary: Cosine and sine, `[tokens, head_dim / 2]`, float32 (RoPE by halves, as Llama has it).
        position: int32, one element.
        q: `[heads, head_dim]`, written.
        keys: `[kv_heads, tokens, head_dim]`, written at the position.
        values: As `keys`.
        early: Launch before the kernel ahead has ended.
    """
    (count, dim), (kv, tokens, _) = q.shape, keys.shape
    _heads[(count + 2 * kv,)](
        parts, *rotary, position, q, keys, values, tokens, PARTS=parts.shape[0], HEADS=count, KV=kv, D=dim, num_warps=1,
        **launch(early),
    )  # fmt: skip


def gather(parts: torch.Tensor, into: Active, *, sparse: bool = True, early: bool = False) -> None:
    """Sum `parts`, `[splits, size]`, into a vector and list its active entries."""
    _plain[(into.chunks,)](
        parts, into.threshold, into.dense, *into.lists, into.size, PARTS=parts.shape[0], CHUNK=CHUNK, SPARSE=sparse,
        num_warps=4, **launch(early),
    )  # fmt: skip


def add_norm(
    hidden: torch.Tensor,
    parts: torch.Tensor,
    weight: torch.Tensor,
    stream: torch.Tensor,
    into: Active,
    *,
    eps: float = 1e-5,
    sparse: bool = True,
    early: bool = False,
) -> None:
    """`stream = hidden + sum(parts)`, then its RMS norm into a vector with its active entries listed.

    `stream` and `hidden` must not share memory: every program reads all of `hidden`.
    """
    _norm[(into.chunks,)](
        hidden, parts, weight, into.threshold, stream, into.dense, *into.lists, into.size, eps, PARTS=parts.shape[0],
        BLOCK=triton.next_power_of_2(into.size), CHUNK=CHUNK, SPARSE=sparse, num_warps=16,
        **launch(early),
    )  # fmt: skip


def gate_up(parts: torch.Tensor, into: Active, *, sparse: bool = True, early: bool = False) -> None:
    """SwiGLU of `parts`, `[splits, 2 * size]` with gate before up, with the active entries listed."""
    _gated[(into.chunks,)](
        parts, into.threshold, into.dense, *into.lists, into.size, PARTS=parts.shape[0], CHUNK=CHUNK, SPARSE=sparse,
        num_warps=4, **launch(early),
    )  # fmt: skip


def active_product(
    columns: torch.Tensor, x: Active, parts: torch.Tensor, layout: Columns, *, early: bool = False
) -> torch.Tensor:
    """Partial sums `[layout.splits(in), out]`, float32, of a weight `[in, out]` and the active entries of `x`.

    Raises:
        InputError: Tensors that do not fit each other.
    """
    inputs, out = columns.shape
    splits = layout.splits(inputs)
    if inputs != x.size or parts.shape != (splits, out) or not (columns.is_contiguous() and parts.is_contiguous()):
        raise InputError(
            f"columns {tuple(columns.shape)}, {x.size} inputs and parts {tuple(parts.shape)} do not fit each other",
            f"parts must be {(splits, out)}; all must be contiguous",
        )
    _product[(triton.cdiv(out, layout.outputs), splits)](
        columns, *x.lists, parts, out, SHARES=layout.shares, CHUNK=CHUNK, BN=layout.outputs, BK=layout.inputs,
        UNROLL=layout.unroll, num_warps=layout.warps, **launch(early),
    )  # fmt: skip
    return parts
