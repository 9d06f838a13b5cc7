"""Which kinds of kernels could use what a checkpoint's zeros and bits look like.

Whether a kernel is faster is a question for a measurement; here it is only said whether its requirements are met. Those
of 2:4 are PyTorch's (`torch.sparse.to_sparse_semi_structured`, CUTLASS): 16-bit weights of at least 32 rows and 64
inputs in multiples of them, int8 of 16 and 128; other stacks ask for about the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsebench.audit.checkpoint import StoredTensor
from sparsebench.audit.patterns import BLOCKS, Patterns

Usable = Literal["yes", "in part", "no"]
Counted = tuple[StoredTensor, Patterns]

SHAPES: Mapping[str, tuple[int, int]] = {"F16": (32, 64), "BF16": (32, 64), "I8": (16, 128)}
"""Rows and inputs of which a 2:4 weight has multiples, by how it is stored."""
FEWEST_BLOCKS = 0.1
"""Share of zero blocks below which skipping them is not worth a mention."""


@dataclass(frozen=True)
class Kernel:
    """What one kind of kernel could do.

    Attributes:
        name: Its kind.
        usable: Whether the checkpoint meets its requirements.
        why: Why, with the share of the linear layers' weights that do.
    """

    name: str
    usable: Usable
    why: str


def kernels(linear: Sequence[Counted], config: Mapping[str, Any]) -> list[Kernel]:
    """All kinds of kernels, for the linear layers of a checkpoint."""
    return [_two_of_four(linear), _blocks(linear), _removed(linear), _low_bits(linear, config), _unstructured(linear)]


def _share(linear: Sequence[Counted], chosen: Sequence[Counted]) -> float:
    whole = sum(tensor.size for tensor, _ in linear)
    return sum(tensor.size for tensor, _ in chosen) / whole if whole else 0.0


def _usable(share: float) -> Usable:
    return "yes" if share == 1 else "in part" if share > 0 else "no"


def _two_of_four(linear: Sequence[Counted]) -> Kernel:
    pattern = [(t, p) for t, p in linear if p.fewest_zeros(4) >= 2]
    fits = [(t, p) for t, p in pattern if _fits(t)]
    share = _share(linear, fits)
    if pattern and not fits:
        stored = ", ".join(sorted({t.dtype for t, _ in pattern}))
        return Kernel("2:4 tensor cores", "no", f"the pattern is there, but shapes or dtype ({stored}) do not fit")
    if fits:
        return Kernel("2:4 tensor cores", _usable(share), f"{100 * share:.1f}% of the linear weights keep 2:4")
    groups = sum(p.share_of_groups(2, 4) * t.size for t, p in linear) / max(1, sum(t.size for t, _ in linear))
    return Kernel(
        "2:4 tensor cores", "no", f"{100 * groups:.1f}% of the groups of four have two zeros; all would need to"
    )


def _fits(tensor: StoredTensor) -> bool:
    shape = SHAPES.get(tensor.dtype.removeprefix("bitmask "))
    return shape is not None and tensor.shape[-2] % shape[0] == 0 and tensor.inputs % shape[1] == 0


def _blocks(linear: Sequence[Counted]) -> Kernel:
    whole = max(1, sum(t.size for t, _ in linear))
    shares = {size: sum(p.zero_blocks(size) * t.size for t, p in linear) / whole for size in BLOCKS}
    large = [size for size in BLOCKS if shares[size] >= FEWEST_BLOCKS]
    best = max(large) if large else min(BLOCKS)
    usable: Usable = "yes" if large else "no"
    return Kernel("block-sparse matmul", usable, f"{100 * shares[best]:.1f}% of the {best} x {best} blocks are zero")


def _removed(linear: Sequence[Counted]) -> Kernel:
    rows = sum(p.zero_rows for _, p in linear) / max(1, sum(p.rows for _, p in linear))
    columns = sum(p.zero_columns for _, p in linear) / max(1, sum(p.inputs for _, p in linear))
    usable: Usable = "in part" if rows or columns else "no"
    return Kernel(
        "smaller dense layers",
        usable,
        f"{100 * rows:.1f}% of the rows and {100 * columns:.1f}% of the columns are zero",
    )


def _low_bits(linear: Sequence[Counted], config: Mapping[str, Any]) -> Kernel:
    stated = config.get("quantization_config")
    if isinstance(stated, Mapping):
        method = str(stated.get("quant_method") or stated.get("format") or "a named format")[:40]
        return Kernel("low-bit matmul", "yes", f"quantised by {method}; its own kernels read it")
    stored = {t.dtype for t, _ in linear if t.bits < 16}
    if stored:
        return Kernel("low-bit matmul", "yes", f"stored as {', '.join(sorted(stored))}; kernels of that format read it")
    hidden = [(t, p) for t, p in linear if p.value_bits is not None]
    if hidden:
        widths = sorted({p.value_bits[0] for _, p in hidden if p.value_bits is not None})
        share = 100 * _share(linear, hidden)
        bits = " and ".join(map(str, widths))
        return Kernel(
            "low-bit matmul",
            "in part",
            f"{share:.1f}% of the linear weights hold values of {bits} bits, stored in more",
        )
    return Kernel("low-bit matmul", "no", "values need the bits that they are stored in")


def _unstructured(linear: Sequence[Counted]) -> Kernel:
    zeros = sum(p.zeros for _, p in linear) / max(1, sum(p.entries for _, p in linear))
    why = f"{100 * zeros:.1f}% zeros; PyTorch's dense products compute them all, compressed storage saves their bytes"
    return Kernel("unstructured", "in part" if zeros > 1 / 16 else "no", why)
