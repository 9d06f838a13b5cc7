"""An audit: every tensor of a checkpoint counted, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.audit.checkpoint import StoredTensor, open_checkpoint
from sparsebench.audit.kernels import Kernel, kernels
from sparsebench.audit.patterns import BLOCKS, GROUPS, Patterns, count

SHOWN = 12


@dataclass(frozen=True)
class Audit:
    """What a checkpoint holds.

    Attributes:
        place: The file or folder.
        files: How many files were read.
        bytes: Their size.
        pickles: Files that were not opened.
        tensors: Every tensor with what was counted; packed codes are not counted.
        kernels: What could use it.
        config: `config.json`.
    """

    place: Path
    files: int
    bytes: int
    pickles: tuple[str, ...]
    tensors: tuple[tuple[StoredTensor, Patterns | None], ...]
    kernels: tuple[Kernel, ...]
    config: Mapping[str, Any]

    @property
    def linear(self) -> list[tuple[StoredTensor, Patterns]]:
        """Weights of linear layers."""
        return [(t, p) for t, p in self.tensors if t.linear and p is not None]

    @property
    def parameters(self) -> int:
        """Entries of all tensors that are no codes."""
        return sum(t.size for t, p in self.tensors if p is not None)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(p.zeros for _, p in self.tensors if p is not None)


def audit(reference: str, on_tensor: Callable[[str], None] = lambda name: None) -> Audit:
    """Count what a checkpoint holds, a few rows at a time.

    Args:
        reference: A folder or file (safetensors, GGUF), or a model reference.
        on_tensor: Hears the name of each tensor before it is read.

    Raises:
        InputError: There is nothing that can be read without running code.
    """
    checkpoint = open_checkpoint(reference)
    counted: list[tuple[StoredTensor, Patterns | None]] = []
    for tensor in checkpoint.tensors():
        on_tensor(tensor.name)
        counted.append((tensor, None if tensor.packed else count(tensor.slabs(), tensor.inputs)))
    linear = [(t, p) for t, p in counted if t.linear and p is not None]
    return Audit(
        checkpoint.place,
        len(checkpoint.files),
        sum(file.stat().st_size for file in checkpoint.files),
        tuple(path.name for path in checkpoint.pickles),
        tuple(counted),
        tuple(kernels(linear, checkpoint.config)),
        checkpoint.config,
    )


def pattern_name(patterns: Patterns) -> str:
    """The strictest n:m that holds everywhere, `2:4`; empty where there is none."""
    found = [(patterns.fewest_zeros(group), group) for group in GROUPS]
    kept = [(zeros, group) for zeros, group in found if 0 < zeros < group]
    if not kept:
        return ""
    zeros, group = max(kept, key=lambda pair: (pair[0] / pair[1], -pair[1]))
    return f"{zeros}:{group}"


def text(found: Audit, *, every: bool = False) -> str:
    """For a terminal.

    Args:
        found: The audit.
        every: Show each linear layer, and not only the first few.
    """
    linear = found.linear
    size, zeros = sum(t.size for t, _ in linear), sum(p.zeros for _, p in linear)
    bits = sum(t.bits * t.size for t, _ in linear) / size if size else 0.0
    codes = [t for t, p in found.tensors if p is None]
    lines = [
        f"{found.place}: {found.files} file{'s' if found.files > 1 else ''}, {found.bytes / 2**20:,.1f} MiB",
        f"  {found.parameters:,} parameters, {_percent(found.zeros, found.parameters)} zeros",
        f"  {size:,} in {len(linear)} linear layers, {_percent(zeros, size)} zeros, {bits:.4g} bits stored for each",
    ]
    if codes:
        lines.append(f"  {len(codes)} tensors hold codes of a packed format; zeros among codes mean nothing")
    bad = sum(p.not_finite for _, p in found.tensors if p is not None)
    if bad:
        lines.append(f"  {bad:,} values are not finite: the checkpoint is damaged")
    if found.pickles:
        lines.append(f"  not opened, since a pickle can run code: {', '.join(found.pickles[:4])}")
    lines += [
        "",
        f"  {'linear layer':<44}{'stored':>8}{'zeros':>8}  n:m    zero rows  columns  blocks of 16  value bits",
    ]
    shown = linear if every else linear[:SHOWN]
    for tensor, patterns in shown:
        values = patterns.value_bits
        lines.append(
            f"  {_ending(tensor.name):<44}{tensor.dtype:>8}{_percent(patterns.zeros, patterns.entries):>8}  "
            f"{pattern_name(patterns) or '-':<6}{patterns.zero_rows:>10}{patterns.zero_columns:>9}"
            f"{100 * patterns.zero_blocks(BLOCKS[0]):>12.1f}%  "
            + (f"{values[0]} in {'rows' if not values[1] else f'groups of {values[1]}'}" if values else "-")
        )
    if len(linear) > len(shown):
        lines.append(f"  and {len(linear) - len(shown)} more: --all shows them")
    lines += ["", *(f"  {kernel.usable:<8} {kernel.name:<22} {kernel.why}" for kernel in found.kernels)]
    return "\n".join([*lines, ""])


def _ending(name: str, width: int = 43) -> str:
    """A name, or the end of one that is too long."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "-"


def to_json(found: Audit) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "place": str(found.place),
        "files": found.files,
        "bytes": found.bytes,
        "parameters": found.parameters,
        "zeros": found.zeros,
        "not_opened": list(found.pickles),
        "tensors": [_tensor(t, p) for t, p in found.tensors],
        "kernels": [vars(kernel) for kernel in found.kernels],
    }


def _tensor(tensor: StoredTensor, patterns: Patterns | None) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "bits": tensor.bits,
        "linear": tensor.linear,
        "codes": tensor.packed,
    }
    if patterns is None:
        return shared
    bits: Sequence[int] | None = patterns.value_bits
    return {
        **shared,
        "zeros": patterns.zeros,
        "sparsity": patterns.sparsity,
        "not_finite": patterns.not_finite,
        "pattern": pattern_name(patterns),
        "groups_of_four_with_two_zeros": patterns.share_of_groups(2, 4),
        "zero_rows": patterns.zero_rows,
        "zero_columns": patterns.zero_columns,
        "zero_blocks": {str(size): patterns.zero_blocks(size) for size in BLOCKS},
        "value_bits": list(bits) if bits is not None else None,
    }
