"""Activation-sparse matrix-vector products in decode: only columns of active inputs are read (TEAL, Liu et al. 2024).

The kernel that produces a vector also writes which of its entries are larger than a threshold: `active` lists of
(position, value), one for each chunk of 512 entries, so that the order of the sums, and with it the result, is the
same every time. The product reads weights stored by columns, `[in, out]`, and writes one partial sum for each share of
the chunks; whatever reads the product adds them up. So no launch is spent on compaction or on reduction alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 512
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
    parts, threshold, out, index, value, count, size, PARTS: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr
):  # fmt: skip
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _summed(parts, at, size, PARTS, size).to(out.dtype.element_ty)
    tl.store(out + at, x, mask=at < size)
    if SPARSE:
        _compact(x.to(tl.float32), at, size, tl.load(threshold), index, value, count, chunk, CHUNK)


@triton.jit
def _norm(
    hidden, parts, weight, threshold, stream, out, index, value, count, size, eps, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """Residual sum and RMS norm. Each program norms the whole vector and writes one chunk of it."""
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
    parts, threshold, out, index, value, count, size, PARTS: tl.constexpr, CHUNK: tl.constexpr, SPARSE: tl.constexpr
):  # fmt: skip
    """SwiGLU of gate and up, which lie side by side."""
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    gate = _summed(parts, at, size, PARTS, 2 * size)
    up = _summed(parts + size, at, size, PARTS, 2 * size)
    x = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + at, x, mask=at < size)
    if SPARSE:
        _compact(x.to(tl.float32), at, size, tl.load(threshold), index, value, count, chunk, CHUNK)


@triton.jit
def _product(
    weight, index, value, count, parts, OUT, CHUNKS, SPLITS: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    acc = tl.zeros([BK, BN], tl.float32)
    for chunk in range(split, CHUNKS, SPLITS):
        active = tl.load(count + chunk)
        for first in tl.range(0, active, BK, num_stages=STAGES):
            slot = first + tl.arange(0, BK)
            listed = slot < active
            row = tl.load(index + chunk * CHUNK + slot, mask=listed, other=0).to(tl.int64)
            x = tl.load(value + chunk * CHUNK + slot, mask=listed, other=0.0)
            where = weight + row[:, None] * OUT + column[None, :]
            w = tl.load(where, mask=listed[:, None] & (column < OUT)[None, :], other=0.0)
            acc += x[:, None] * w.to(tl.float32)
    tl.store(parts + split * OUT + column, tl.sum(acc, 0), mask=column < OUT)


@dataclass(frozen=True)
class Columns:
    """How the product is laid out; never changes what is computed, except the order of its sums.

    Attributes:
        splits: Shares of the inputs, each with its partial sum.
        outputs: Outputs of one program; a power of two.
        inputs: Active columns read at once; a power of two.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
    """

    splits: int = 4
    outputs: int = 256
    inputs: int = 16
    warps: int = 4
    stages: int = 3

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


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
    D: tl.constexpr,
):  # fmt: skip
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
) -> None:
    """Sum `parts`, `[splits, (heads + 2 kv_heads) head_dim]`, rotate, and write the query and the cache at a position.

    Args:
        parts: Query, key and value side by side.
        rotary: Cosine and sine, `[tokens, head_dim / 2]`, float32 (RoPE by halves, as Llama has it).
        position: int32, one element.
        q: `[heads, head_dim]`, written.
        keys: `[kv_heads, tokens, head_dim]`, written at the position.
        values: As `keys`.
    """
    (count, dim), (kv, tokens, _) = q.shape, keys.shape
    _heads[(count + 2 * kv,)](
        parts, *rotary, position, q, keys, values, tokens, PARTS=parts.shape[0], HEADS=count, KV=kv, D=dim, num_warps=1,
    )  # fmt: skip


def gather(parts: torch.Tensor, into: Active, *, sparse: bool = True) -> None:
    """Sum `parts`, `[splits, size]`, into a vector and list its active entries."""
    _plain[(into.chunks,)](
        parts, into.threshold, into.dense, *into.lists, into.size, PARTS=parts.shape[0], CHUNK=CHUNK, SPARSE=sparse,
        num_warps=4,
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
) -> None:
    """`stream = hidden + sum(parts)`, then its RMS norm into a vector with its active entries listed.

    `stream` and `hidden` must not share memory: every program reads all of `hidden`.
    """
    _norm[(into.chunks,)](
        hidden, parts, weight, into.threshold, stream, into.dense, *into.lists, into.size, eps, PARTS=parts.shape[0],
        BLOCK=triton.next_power_of_2(into.size), CHUNK=CHUNK, SPARSE=sparse, num_warps=8,
    )  # fmt: skip


def gate_up(parts: torch.Tensor, into: Active, *, sparse: bool = True) -> None:
    """SwiGLU of `parts`, `[splits, 2 * size]` with gate before up, with the active entries listed."""
    _gated[(into.chunks,)](
        parts, into.threshold, into.dense, *into.lists, into.size, PARTS=parts.shape[0], CHUNK=CHUNK, SPARSE=sparse,
        num_warps=4,
    )  # fmt: skip


def active_product(columns: torch.Tensor, x: Active, parts: torch.Tensor, layout: Columns) -> torch.Tensor:
    """Partial sums `[splits, out]`, float32, of a weight `[in, out]` and the active entries of `x`."""
    out = columns.shape[1]
    _product[(triton.cdiv(out, layout.outputs), layout.splits)](
        columns, *x.lists, parts, out, x.chunks, SPLITS=layout.splits, CHUNK=CHUNK, BN=layout.outputs, BK=layout.inputs,
        STAGES=layout.stages, num_warps=layout.warps,
    )  # fmt: skip
    return parts
