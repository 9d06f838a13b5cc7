"""The tensors of a checkpoint, read a few rows at a time: safetensors and GGUF, never a pickle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.data.paths import expanded
from sparsebench.errors import InputError, IntegrityError

if TYPE_CHECKING:
    import torch

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAFE = (".safetensors", ".gguf")
SLAB = 1 << 22
"""Entries that are read at a time."""
ROWS = 128
"""Rows of a piece are a multiple of this, so that blocks do not fall into two pieces."""
EMBEDDINGS = re.compile(
    r"(embed|lm_head|\bwte\b|\bwpe\b|\btoken_embd\b|^output\.weight$|position|shared\.weight|rel_attn)"
)
STATES = re.compile(r"(^|\.)(A_log|ssm_a)$")
"""Decay rates of state space models: as wide as a linear layer, and multiplied with nothing."""
PACKED = re.compile(r"(\.qweight|\.qzeros|weight_packed|\.packed|\.absmax|\.quant_map|\.scb|g_idx)$", re.IGNORECASE)
TRANSPOSED = ("gpt2", "gpt_bigcode", "openai-gpt", "imagegpt")
"""Model types whose linear layers are stored as [in, out]."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: Its name.
        shape: Its sizes; a linear layer's is [out, in].
        dtype: What it is stored in: `BF16`, `Q4_K`.
        bits: Stored bits of an entry, scales included where they are stored in the same block.
        packed: Whether its entries are codes, so that their zeros mean nothing.
        read: Rows from one number to another, `[rows, inputs]`; leading dimensions count as rows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: float
    packed: bool
    read: Callable[[int, int], torch.Tensor]

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows, over all leading dimensions."""
        return math.prod(self.shape[:-1])

    @property
    def inputs(self) -> int:
        """Entries of a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def linear(self) -> bool:
        """Whether it is the weight of a linear layer (or of stacked experts): neither embedding nor norm nor codes."""
        wide = len(self.shape) in (2, 3) and min(self.shape[-2:]) >= 8
        return wide and not self.packed and not EMBEDDINGS.search(self.name) and not STATES.search(self.name)

    def slabs(self) -> Iterator[torch.Tensor]:
        """All rows, in pieces of some thousand entries."""
        step = max(ROWS, SLAB // max(self.inputs, 1) // ROWS * ROWS)
        for start in range(0, self.rows, step):
            yield self.read(start, min(start + step, self.rows))


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint.

    Attributes:
        place: The file or folder.
        files: Those that are read.
        pickles: Those that are not, for a pickle can run code.
        config: `config.json`; empty without one.
    """

    place: Path
    files: tuple[Path, ...]
    pickles: tuple[Path, ...]
    config: dict[str, Any]

    def tensors(self) -> Iterator[StoredTensor]:
        """All tensors, in the order of the files."""
        transposed = self.config.get("model_type") in TRANSPOSED
        for file in self.files:
            yield from _gguf(file) if file.suffix == ".gguf" else _safetensors(file, transposed)


def open_checkpoint(reference: str) -> Checkpoint:
    """A checkpoint by a path on this machine or a model reference.

    Raises:
        InputError: There is nothing there that can be read without running code.
        MissingError: A reference that is not to be had.
    """
    place = expanded(reference, "the checkpoint")
    if not place.exists():
        from sparsebench.data.references import parse
        from sparsebench.data.sources import locate

        place = locate(parse(reference), kind="model").path
    if place.is_file() and place.suffix not in (*SAFE, *PICKLES):
        raise InputError(f"{place}: no checkpoint", f"give a folder, or a file ending in {' or '.join(SAFE)}")
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    files = tuple(path for path in found if path.suffix in SAFE and path.is_file())
    pickles = tuple(path for path in found if path.suffix in PICKLES and path.is_file())
    if not files:
        names = ", ".join(path.name for path in pickles[:3])
        what = f"only {names}, which may be pickles: they can run code when opened" if pickles else "no weights"
        raise InputError(f"{place}: {what}", "convert it to safetensors first: `save_pretrained` writes them")
    return Checkpoint(place, files, pickles, _config(place))


def _config(place: Path) -> dict[str, Any]:
    file = (place if place.is_dir() else place.parent) / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _safetensors(file: Path, transposed: bool) -> Iterator[StoredTensor]:
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        try:
            opened: Any = stack.enter_context(safe_open(file, framework="pt"))
            names = sorted(opened.keys())
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{file}: not a safetensors file: {error}", "get the file again") from None
        for name in names:
            if name.endswith(".bitmask") and f"{name[:-8]}.compressed" in names:
                yield _bitmask(opened, name[:-8])
            elif not any(name.endswith(part) and f"{name[: -len(part)]}.bitmask" in names for part in _BITMASK_PARTS):
                yield _plain(opened, name, transposed, f"{name}_zero_point" in names)


_BITMASK_PARTS = (".compressed", ".shape", ".row_offsets")
_BITS = re.compile(r"[0-9]+")


def _plain(opened: Any, name: str, transposed: bool, shifted: bool) -> StoredTensor:
    """A tensor as it is stored; `shifted` codes have a zero of their own."""
    part = opened.get_slice(name)
    shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
    bits = float(digits[0]) if (digits := _BITS.search(dtype)) else 8.0
    turned = transposed and len(shape) == 2 and not EMBEDDINGS.search(name)

    def read(start: int, stop: int) -> torch.Tensor:
        if not shape:
            return opened.get_tensor(name).reshape(1, 1)  # type: ignore[no-any-return]
        if len(shape) == 1:
            return part[:].reshape(1, -1)  # type: ignore[no-any-return]
        if turned:
            return part[:, start:stop].T  # type: ignore[no-any-return]
        if len(shape) == 2:
            return part[start:stop]  # type: ignore[no-any-return]
        inner = math.prod(shape[1:-1])
        first, last = start // inner, -(-stop // inner)
        return part[first:last].reshape(-1, shape[-1])[start - first * inner : stop - first * inner]  # type: ignore[no-any-return]

    packed = shifted or bool(PACKED.search(name)) or dtype in ("I32", "U32", "I64", "U8", "BOOL")
    return StoredTensor(name, shape[::-1] if turned else shape, dtype, bits, packed, read)


def _bitmask(opened: Any, name: str) -> StoredTensor:
    """A weight of which kept values and one bit for each entry are stored; it reads as ones and zeros."""
    import numpy as np
    import torch

    mask = opened.get_slice(f"{name}.bitmask")
    shape = tuple(int(size) for size in opened.get_tensor(f"{name}.shape").tolist())
    kept = opened.get_slice(f"{name}.compressed")
    width = float(digits[0]) if (digits := _BITS.search(str(kept.get_dtype()))) else 16.0
    bits = 1 + width * math.prod(kept.get_shape()) / max(1, math.prod(shape))

    def read(start: int, stop: int) -> torch.Tensor:
        rows = mask[start:stop].numpy()
        return torch.from_numpy(np.unpackbits(rows, axis=-1, bitorder="little")[:, : shape[-1]].astype(np.float32))

    return StoredTensor(name, shape, f"bitmask {kept.get_dtype()}", bits, False, read)


def _gguf(file: Path) -> Iterator[StoredTensor]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise IntegrityError(f"{file}: not a GGUF file: {error}", "get the file again") from None
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in tensor.shape)[::-1] or (1,)  # a tensor without dimensions is one number
        bits = 8.0 * int(tensor.n_bytes) / max(1, int(tensor.n_elements))
        yield StoredTensor(tensor.name, shape, tensor.tensor_type.name, bits, False, _dequantised(tensor, shape))


def _dequantised(tensor: Any, shape: Sequence[int]) -> Callable[[int, int], torch.Tensor]:
    def read(start: int, stop: int) -> torch.Tensor:
        import numpy as np
        import torch
        from gguf import dequantize

        if not all(shape):
            return torch.empty(0, shape[-1])
        rows = np.asarray(tensor.data).reshape(math.prod(shape[:-1]), -1)[start:stop]
        values = dequantize(rows, tensor.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(-1, shape[-1])

    return read
