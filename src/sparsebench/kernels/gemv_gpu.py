"""Activation-sparse products on a GPU, for the few tokens of a step of decode: what `gemv_cpu` is on a processor.

Shapes are known on the host and nothing is asked of the device, so that a CUDA graph can hold all of it: which entries
are kept is in lists on the device, one for each token and each chunk of 1,024 entries (`sparse_gemv`). Each token reads
the columns of its own lists; what several tokens read comes from memory once as far as the cache goes. Sums are float32
and have the same order every time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError
from sparsebench.kernels.counting import Met
from sparsebench.kernels.sparse_gemv import CHUNK, Columns, _compact, _product, _summed

PROGRAMS = 512
"""Programs of a product that keep the memory of a large GPU busy."""
SHARES = 8
"""Programs that share one list, at most."""
FINISHED = 512
"""Outputs of a program that adds partial sums up."""
ROWS, WIDE = 8, 256
"""Outputs of a program of a product by rows, and inputs that it reads at once."""


@triton.jit
def _list(x, gone, index, value, count, nonzero, size, CHUNK: tl.constexpr, CHOSEN: tl.constexpr):
    chunk, token = tl.program_id(0), tl.program_id(1)
    slot = token * tl.num_programs(0) + chunk
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    entry = tl.load(x + token * size + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(nonzero + slot, tl.sum((entry != 0.0).to(tl.int32), 0))
    if CHOSEN:
        left_out = tl.load(gone + token * size + at, mask=at < size, other=1)
        entry = tl.where(left_out != 0, 0.0, entry)
    _compact(entry, at, size, 0.0, index, value, count, slot, CHUNK)


@triton.jit
def _count(count, nonzero, lists, entries, saved, zeros, before, LISTS: tl.constexpr):
    """Add up zeros; one program does so, and kernels come one after another."""
    at = tl.arange(0, LISTS)
    kept = tl.sum(tl.load(count + at, mask=at < lists, other=0), 0)
    there = tl.sum(tl.load(nonzero + at, mask=at < lists, other=0), 0)
    tl.store(zeros, tl.load(zeros) + (entries - kept).to(tl.float64) * saved)
    tl.store(before, tl.load(before) + (entries - there).to(tl.float64) * saved)


@triton.jit
def _finish(
    parts, bias, out, OUT, count, nonzero, lists, entries, saved, zeros, before, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, BIASED: tl.constexpr, LISTS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """Add partial sums and the bias, and round."""
    token = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = _summed(parts + token * PARTS * OUT, at, OUT, PARTS, OUT)
    if BIASED:
        total += tl.load(bias + at, mask=at < OUT, other=0.0).to(tl.float32)
    tl.store(out + token * OUT + at, total.to(out.dtype.element_ty), mask=at < OUT)
    if COUNTED:
        if tl.program_id(0) + token == 0:
            _count(count, nonzero, lists, entries, saved, zeros, before, LISTS)


@triton.jit
def _rows(
    weight, x, index, bias, out, inputs, OUT, count, nonzero, lists, entries, saved, zeros, before,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, BIASED: tl.constexpr, LISTS: tl.constexpr,
    COUNTED: tl.constexpr,
):  # fmt: skip
    """A few listed outputs of one token; programs beyond the end of a list have nothing to do."""
    token = tl.program_id(1)
    PARTS: tl.constexpr = CHUNK // ROWS
    slot = token * (tl.num_programs(0) // PARTS) + tl.program_id(0) // PARTS
    active = tl.load(count + slot)
    first = (tl.program_id(0) % PARTS) * ROWS
    if first < active:
        place = first + tl.arange(0, ROWS)
        row = tl.load(index + slot * CHUNK + place, mask=place < active, other=0)
        acc = tl.zeros([ROWS, WIDE], tl.float32)
        for start in range(0, inputs, WIDE):
            at = start + tl.arange(0, WIDE)
            where = weight + row.to(tl.int64)[:, None] * inputs + at[None, :]
            tile = tl.load(where, mask=(place < active)[:, None] & (at < inputs)[None, :], other=0.0)
            entry = tl.load(x + token * inputs + at, mask=at < inputs, other=0.0).to(tl.float32)
            acc += tile.to(tl.float32) * entry[None, :]
        total = tl.sum(acc, 1)
        if BIASED:
            total += tl.load(bias + row, mask=place < active, other=0.0).to(tl.float32)
        tl.store(out + token * OUT + row, total.to(out.dtype.element_ty), mask=place < active)
    if COUNTED:
        if tl.program_id(0) + token == 0:
            _count(count, nonzero, lists, entries, saved, zeros, before, LISTS)


@dataclass(frozen=True)
class Listed:
    """What some tokens keep of their entries, in lists on the device.

    Attributes:
        index: Entries that are kept and are not zero, int32 [tokens, chunks, CHUNK].
        value: Their values, float32, likewise.
        count: Length of each list, int32 [tokens, chunks].
        nonzero: Entries of each chunk that are not zero, kept or not, int32 [tokens, chunks].
        size: Entries of a token.
    """

    index: torch.Tensor
    value: torch.Tensor
    count: torch.Tensor
    nonzero: torch.Tensor
    size: int

    @property
    def tokens(self) -> int:
        """Tokens."""
        return self.count.shape[0]

    def counting(self, met: Met | None) -> tuple[tuple[object, ...], dict[str, object]]:
        """Arguments of a kernel that counts."""
        lists = self.count.numel()
        # Where nothing is counted any pointer will do.
        zeros, before = (self.count, self.count) if met is None else met.tallies(self.count.device)
        entries, saved = self.tokens * self.size, 0 if met is None else met.saved
        options = {"LISTS": triton.next_power_of_2(lists), "COUNTED": met is not None}
        return (self.count, self.nonzero, lists, entries, saved, zeros, before), options


def listed(x: torch.Tensor, gone: torch.Tensor | None = None) -> Listed:
    """List what is kept of x [tokens, channels], from which `gone` [tokens, channels], bool, is left out."""
    tokens, size = x.shape
    chunks = triton.cdiv(size, CHUNK)
    index = torch.empty(tokens, chunks, CHUNK, dtype=torch.int32, device=x.device)
    value = torch.empty(tokens, chunks, CHUNK, dtype=torch.float32, device=x.device)
    count, nonzero = torch.empty(2, tokens, chunks, dtype=torch.int32, device=x.device)
    left_out = x if gone is None else gone.contiguous()
    with _on(x.device):
        _list[(chunks, tokens)](
            x.contiguous(), left_out, index, value, count, nonzero, size, CHUNK=CHUNK, CHOSEN=gone is not None,
            num_warps=4,
        )  # fmt: skip
    return Listed(index, value, count, nonzero, size)


class ColumnWeight:
    """A weight matrix stored by columns.

    Args:
        weight: `[out, in]`; copied, unless its columns are contiguous already.

    Raises:
        InputError: It is no matrix of floating-point numbers.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        _check(weight)
        self.outputs, self.inputs = weight.shape
        self._columns = weight.detach().t().contiguous()
        self.bytes = self._columns.nbytes if self._columns.data_ptr() != weight.data_ptr() else 0
        """Of the copy; 0 where there is none."""
        tile = 128 if self.outputs >= 1024 else 64
        programs = triton.cdiv(self.outputs, tile) * triton.cdiv(self.inputs, CHUNK)
        self._layout = Columns(shares=min(SHARES, triton.cdiv(PROGRAMS, programs)), outputs=tile)

    def product(self, x: Listed, bias: torch.Tensor | None = None, met: Met | None = None) -> torch.Tensor:
        """The product with what is kept, `[tokens, out]`, of the weight's type, rounded once from float32."""
        layout, columns = self._layout, self._columns
        splits = layout.splits(self.inputs)
        parts = columns.new_empty((x.tokens, splits, self.outputs), dtype=torch.float32)
        out = columns.new_empty((x.tokens, self.outputs))
        numbers, options = x.counting(met)
        with _on(columns.device):
            _product[(triton.cdiv(self.outputs, layout.outputs), splits, x.tokens)](
                columns, x.index, x.value, x.count, parts, self.outputs, SHARES=layout.shares, CHUNK=CHUNK,
                BN=layout.outputs, BK=layout.inputs, UNROLL=layout.unroll, EARLY=False, num_warps=layout.warps,
            )  # fmt: skip
            _finish[(triton.cdiv(self.outputs, FINISHED), x.tokens)](
                parts, out if bias is None else bias, out, self.outputs, *numbers, PARTS=splits, BLOCK=FINISHED,
                BIASED=bias is not None, **options, num_warps=4,
            )  # fmt: skip
        return out


class RowWeight:
    """A weight matrix of which outputs are left out: it is stored by rows, as a layer has it.

    Args:
        weight: `[out, in]`, contiguous; not copied.

    Raises:
        InputError: It is no matrix of floating-point numbers, or does not lie in memory by rows.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        _check(weight)
        if not weight.is_contiguous():
            raise InputError(f"a weight of shape {tuple(weight.shape)} does not lie in memory by rows")
        self._rows = weight.detach()

    def product(
        self, x: torch.Tensor, outputs: Listed, bias: torch.Tensor | None = None, met: Met | None = None
    ) -> torch.Tensor:
        """Of x [tokens, in] the outputs that a token keeps, `[tokens, out]`, of the weight's type; others are zero."""
        size, inputs = self._rows.shape
        out = self._rows.new_zeros((outputs.tokens, size))
        numbers, options = outputs.counting(met)
        with _on(out.device):
            _rows[(triton.cdiv(size, CHUNK) * (CHUNK // ROWS), outputs.tokens)](
                self._rows, x.contiguous(), outputs.index, out if bias is None else bias, out, inputs, size, *numbers,
                CHUNK=CHUNK, ROWS=ROWS, WIDE=WIDE, BIASED=bias is not None, **options, num_warps=4,
            )  # fmt: skip
        return out


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, whatever its arguments lie on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _check(weight: torch.Tensor) -> None:
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InputError(f"a weight of shape {tuple(weight.shape)}, {weight.dtype} has no column product")
