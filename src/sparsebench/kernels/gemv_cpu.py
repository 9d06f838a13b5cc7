"""Activation-sparse products on a processor, for the few tokens of a step of decode.

The weight is stored by columns, so an input that no token keeps skips one contiguous run of memory (TEAL, Liu et al.
2024); or by rows, where it is outputs that are left out (CATS, Lee et al. 2024). Each thread owns a run of outputs and
adds four columns to it at a time; sums are float32, in the order of the inputs, whatever the number of threads. Needs
numba; its functions compile on first use, for a few seconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sparsebench.errors import InputError, MissingError
from sparsebench.kernels.counting import Met

TILE = 1024
"""Outputs of one piece of work at most: their sums stay in the first-level cache."""
LEAST_TILE = 256
"""Outputs that are worth a thread of their own."""
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Listed:
    """What some tokens keep of their entries.

    Attributes:
        places: Entries that any token keeps and that are not zero for it, ascending, int64.
        values: Their values, 0 where another token keeps them, float32 [tokens, places].
        entries: Entries of all tokens.
        kept: Those that are kept and are not zero.
        nonzero: Those that are not zero, kept or not.
    """

    places: np.ndarray
    values: np.ndarray
    entries: int
    kept: int
    nonzero: int

    def count(self, met: Met | None) -> None:
        """Say how many are zero, after leaving out and before."""
        if met is not None:
            met.add(self.entries - self.kept, self.entries - self.nonzero)


def listed(x: torch.Tensor, gone: torch.Tensor | None = None) -> Listed:
    """List what is kept of x [tokens, channels], from which `gone` [tokens, channels], bool, is left out."""
    left_out = np.zeros(x.shape, dtype=np.bool_) if gone is None else gone.numpy()
    places, values, kept, nonzero = _compiled(torch.float32).listed(x.detach().float().numpy(), left_out)
    return Listed(places, values, x.numel(), int(kept), int(nonzero))


class ColumnWeight:
    """A weight matrix stored by columns.

    Args:
        weight: `[out, in]`, float32 or bfloat16, on the CPU; copied, unless its columns are contiguous already.

    Raises:
        InputError: Another shape, type or device.
        MissingError: numba is not installed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        _check(weight)
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self._product = _compiled(weight.dtype).columns
        columns = weight.detach().t().contiguous()
        self._columns = _bits(columns)
        self.bytes = columns.nbytes if columns.data_ptr() != weight.data_ptr() else 0
        """Of the copy; 0 where there is none."""

    def product(self, x: Listed, bias: torch.Tensor | None = None, met: Met | None = None) -> torch.Tensor:
        """The product with what is kept, `[tokens, out]`, of the weight's type, rounded once from float32."""
        x.count(met)
        out = np.empty((len(x.values), self.outputs), dtype=np.float32)
        self._product(self._columns, x.places, x.values, _tile(self.outputs), out)
        return _rounded(out, bias, self.dtype)

    def __call__(self, x: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        """The product with inputs that are larger than `threshold` in magnitude; columns of others are not read.

        Args:
            x: `[in]`, of the weight's type.
            threshold: Inputs of at most this magnitude count as zero.

        Returns:
            `[out]`, of the weight's type.

        Raises:
            InputError: A vector of another shape or type.
        """
        if x.shape != (self.inputs,) or x.dtype != self.dtype:
            raise InputError(f"an input {tuple(x.shape)}, {x.dtype} does not fit {self.inputs} inputs in {self.dtype}")
        row = x.detach()[None]
        return self.product(listed(row, row.float().abs() <= threshold))[0]


class RowWeight:
    """A weight matrix of which outputs are left out: it is stored by rows, as a layer has it.

    Args:
        weight: `[out, in]`, contiguous, float32 or bfloat16, on the CPU; not copied.

    Raises:
        InputError: Another shape, type, form or device.
        MissingError: numba is not installed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        _check(weight)
        if not weight.is_contiguous():
            raise InputError(f"a weight of shape {tuple(weight.shape)} does not lie in memory by rows")
        self.dtype = weight.dtype
        self._product = _compiled(weight.dtype).rows
        self._rows = _bits(weight.detach())

    def product(
        self, x: torch.Tensor, outputs: Listed, bias: torch.Tensor | None = None, met: Met | None = None
    ) -> torch.Tensor:
        """Of x [tokens, in] the outputs that a token keeps, `[tokens, out]`, of the weight's type; others are zero."""
        outputs.count(met)
        out = np.zeros((len(x), len(self._rows)), dtype=np.float32)
        self._product(self._rows, outputs.places, x.detach().float().numpy(), out)
        if bias is None:
            return _rounded(out, None, self.dtype)
        kept = torch.from_numpy(outputs.places)
        whole = torch.from_numpy(out)
        whole[:, kept] += bias[kept]
        return whole.to(self.dtype)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads of numba, or with as many as it has.

    Raises:
        MissingError: numba is not installed.
    """
    numba = _numba()
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _check(weight: torch.Tensor) -> None:
    if weight.ndim != 2 or weight.dtype not in DTYPES or weight.device.type != "cpu":
        raise InputError(
            f"a weight of shape {tuple(weight.shape)}, {weight.dtype} on {weight.device} has no column product",
            "a matrix in float32 or bfloat16 on the CPU has",
        )


def _bits(matrix: torch.Tensor) -> np.ndarray:
    """A matrix as numpy has it: bfloat16 as its bits."""
    if matrix.dtype == torch.bfloat16:
        return matrix.view(torch.int16).numpy().view(np.uint16)
    return matrix.numpy()


def _rounded(out: np.ndarray, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    found = torch.from_numpy(out)
    return (found if bias is None else found + bias.detach()).to(dtype)


def _tile(outputs: int) -> int:
    """Outputs of a piece of work: as large as each thread can have one, within bounds."""
    each = -(-outputs // int(_numba().get_num_threads()))
    return min(TILE, max(LEAST_TILE, -(-each // 64) * 64))


@functools.cache
def _numba() -> Any:
    try:
        import numba
    except ImportError:
        hint = "pip install 'sparsebench[cpu-kernels]'"
        raise MissingError("products over active columns need numba", hint) from None
    return numba


def _pooled() -> bool:
    """Whether numba has OpenMP's threads or TBB's: its own take longer to begin than such a product does."""
    for pool in ("omppool", "tbbpool"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"numba.np.ufunc.{pool}")
            return True
    return False


@functools.cache
def _compiled(dtype: torch.dtype) -> SimpleNamespace:
    """The functions for weights of one type: `listed`, `columns`, `rows`."""
    numba = _numba()
    # Fused multiply-adds, but no reordering: results are the same on every run.
    compiled = functools.partial(numba.njit, fastmath={"contract"})
    prange, parallel = numba.prange, _pooled()
    widened = _widened(numba, dtype)

    @compiled()
    def listed(x, gone):
        tokens, size = x.shape
        places = np.empty(size, dtype=np.int64)
        count = kept = nonzero = 0
        for i in range(size):
            wanted = 0
            for token in range(tokens):
                present = x[token, i] != 0
                nonzero += present
                wanted += present and not gone[token, i]
            places[count] = i
            count += wanted > 0
            kept += wanted
        values = np.empty((tokens, count), dtype=np.float32)
        for token in range(tokens):
            for k in range(count):
                i = places[k]
                values[token, k] = np.float32(0) if gone[token, i] else x[token, i]
        return places[:count].copy(), values, kept, nonzero

    @compiled(parallel=parallel)
    def columns(weight, places, values, tile, out):
        tokens, size = out.shape
        whole = len(places) // 4 * 4
        for part in prange((size + tile - 1) // tile):
            first = part * tile
            count = min(tile, size - first)
            sums = np.zeros((tokens, tile), dtype=np.float32)
            for i in range(0, whole, 4):
                a = weight[places[i], first : first + count]
                b = weight[places[i + 1], first : first + count]
                c = weight[places[i + 2], first : first + count]
                d = weight[places[i + 3], first : first + count]
                for token in range(tokens):
                    total = sums[token]
                    va, vb, vc, vd = values[token, i], values[token, i + 1], values[token, i + 2], values[token, i + 3]
                    for j in range(count):
                        total[j] = (
                            total[j] + va * widened(a[j]) + vb * widened(b[j]) + vc * widened(c[j]) + vd * widened(d[j])
                        )
            for i in range(whole, len(places)):
                a = weight[places[i], first : first + count]
                for token in range(tokens):
                    total = sums[token]
                    va = values[token, i]
                    for j in range(count):
                        total[j] += va * widened(a[j])
            for token in range(tokens):
                out[token, first : first + count] = sums[token, :count]

    @numba.njit(fastmath={"contract", "reassoc"}, parallel=parallel)  # one order, which the compiler chooses
    def rows(weight, places, x, out):
        tokens, size = x.shape
        for k in prange(len(places)):
            row = weight[places[k]]
            for token in range(tokens):
                total = np.float32(0)
                for j in range(size):
                    total += x[token, j] * widened(row[j])
                out[token, places[k]] = total

    return SimpleNamespace(listed=listed, columns=columns, rows=rows)


def _widened(numba: Any, dtype: torch.dtype) -> Callable[..., Any]:
    """A weight as float32."""
    if dtype == torch.bfloat16:

        @numba.njit(inline="always")
        def widened(value):
            return np.uint32(np.uint32(value) << 16).view(np.float32)  # numba widens a shift to 64 bits
    else:

        @numba.njit(inline="always")
        def widened(value):
            return value

    found: Callable[..., Any] = widened
    return found
