"""Activation-sparse matrix-vector products on a processor: only columns of active inputs are read.

The method is TEAL's (Liu et al. 2024). The weight is stored by columns, so an inactive input skips one contiguous run
of memory. Each thread owns a run of outputs and adds four active columns to it at a time; sums are float32, in the
order of the inputs, whatever the number of threads. Needs numba; its functions compile on first use, for a few seconds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from sparsebench.errors import InputError, MissingError

TILE = 1024
"""Outputs of one piece of work: their sums stay in the first-level cache."""


class ColumnWeight:
    """A weight matrix stored by columns.

    Args:
        weight: `[out, in]`, float32 or bfloat16, on the CPU; copied.

    Raises:
        InputError: Another shape, type or device.
        MissingError: numba is not installed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16) or weight.device.type != "cpu":
            raise InputError(
                f"a weight of shape {tuple(weight.shape)}, {weight.dtype} on {weight.device} has no column product",
                "a matrix in float32 or bfloat16 on the CPU has",
            )
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        columns = weight.detach().t().contiguous()
        self._product = _compiled(weight.dtype)
        self._columns = (columns.view(torch.int16) if weight.dtype == torch.bfloat16 else columns).numpy()
        if weight.dtype == torch.bfloat16:
            self._columns = self._columns.view(np.uint16)

    def __call__(self, x: torch.Tensor, threshold: float = 0.0, threads: int | None = None) -> torch.Tensor:
        """The product with the inputs that are larger than `threshold` in magnitude.

        Args:
            x: `[in]`, of the weight's type.
            threshold: Inputs of at most this magnitude count as zero and their columns are not read.
            threads: Threads; all that numba has by default.

        Returns:
            `[out]`, of the weight's type, rounded once from float32.

        Raises:
            InputError: A vector of another shape or type.
        """
        if x.shape != (self.inputs,) or x.dtype != self.dtype:
            raise InputError(f"an input {tuple(x.shape)}, {x.dtype} does not fit {self.inputs} inputs in {self.dtype}")
        values = x.detach().float().numpy()
        active = np.flatnonzero(np.abs(values) > threshold)
        out = np.empty(self.outputs, dtype=np.float32)
        with _threads(threads):
            self._product(self._columns, active, values[active], out)
        return torch.from_numpy(out).to(self.dtype)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run with so many threads of numba, or with as many as it has."""
    import numba

    before = numba.get_num_threads()
    if count:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@functools.cache
def _compiled(dtype: torch.dtype) -> Callable[..., Any]:
    try:
        import numba
    except ImportError:
        raise MissingError("products over active columns need numba", "pip install numba") from None
    # Fused multiply-adds, but no reordering: results are the same on every run.
    compiled = functools.partial(numba.njit, fastmath={"contract"})
    prange = numba.prange

    if dtype == torch.bfloat16:

        @numba.njit(inline="always")
        def widened(value):
            return np.uint32(np.uint32(value) << 16).view(np.float32)  # numba widens a shift to 64 bits
    else:

        @numba.njit(inline="always")
        def widened(value):
            return value

    @compiled(parallel=True)
    def product(columns, active, values, out):
        size = len(out)
        for tile in prange((size + TILE - 1) // TILE):
            first = tile * TILE
            count = min(TILE, size - first)
            sums = np.zeros(TILE, dtype=np.float32)
            whole = len(active) // 4 * 4
            for i in range(0, whole, 4):
                a = columns[active[i], first : first + count]
                b = columns[active[i + 1], first : first + count]
                c = columns[active[i + 2], first : first + count]
                d = columns[active[i + 3], first : first + count]
                va, vb, vc, vd = values[i], values[i + 1], values[i + 2], values[i + 3]
                for j in range(count):
                    sums[j] = (
                        sums[j] + va * widened(a[j]) + vb * widened(b[j]) + vc * widened(c[j]) + vd * widened(d[j])
                    )
            for i in range(whole, len(active)):
                a = columns[active[i], first : first + count]
                va = values[i]
                for j in range(count):
                    sums[j] += va * widened(a[j])
            out[first : first + count] = sums[:count]

    found: Callable[..., Any] = product
    return found
