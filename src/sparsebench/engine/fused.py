"""What kernels of Triton do with masks over keys, on GPUs where Triton is there; each gives None where it cannot.

A kernel that Triton cannot compile or start on a device is given up for the rest of the process, with a warning.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sparsebench.engine.attention import AttentionView


def usable(x: torch.Tensor) -> bool:
    """Whether kernels run where a tensor lies."""
    return x.device.type == "cuda"


@cache
def _kernels() -> Any:
    try:
        from sparsebench.kernels import block_mass, masked_decode, masked_prefill, selection, tallies, top_keys
    except ImportError:
        return None
    return SimpleNamespace(
        decode=masked_decode,
        prefill=masked_prefill,
        tallies=tallies,
        mass=block_mass,
        selection=selection,
        top=top_keys,
    )


_given_up: set[str] = set()


def _tried(name: str, call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What a kernel gives; None where it cannot be compiled or started here."""
    if name in _given_up:
        return None
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not _of_triton(error):
            raise
        _given_up.add(name)
        said = f"{type(error).__name__}: {str(error).strip()[:200]}"
        warnings.warn(f"the kernel {name} does not run here, so plain operations do its work: {said}", stacklevel=2)
        return None


def _of_triton(error: Exception) -> bool:
    """Whether Triton or what it calls (assembler, C compiler) failed, and not the work itself."""
    named = type(error).__module__.partition(".")[0] == "triton" or isinstance(error, subprocess.CalledProcessError)
    return named or "Triton Error" in str(error) or "C compiler" in str(error)


def _plain(view: AttentionView) -> bool:
    return view.softcap is None and view.sinks is None


def executes(view: AttentionView) -> bool:
    """Whether attention over a mask skips here what the mask leaves out: tiles of a prompt, and keys of a token."""
    if not (usable(view.query) and _plain(view)) or (kernels := _kernels()) is None:
        return False
    tensors = view.query, view.key, view.value
    if kernels.prefill.suits(*tensors):
        return "masked_prefill" not in _given_up
    return bool(kernels.decode.suits(*tensors)) and "masked_decode" not in _given_up


def attend(view: AttentionView, keep: torch.Tensor, within: bool = False) -> torch.Tensor | None:
    """Attention over the keys that are kept and seen, [rows, heads, queries, value_dim].

    Args:
        view: The rows.
        keep: Bool, broadcastable to [rows, heads, queries, keys], or with key heads in the place of heads.
        within: Whether it names seen keys alone.
    """
    if not (usable(view.query) and _plain(view)) or (kernels := _kernels()) is None:
        return None
    tensors = view.query, view.key, view.value
    if kernels.prefill.suits(*tensors):
        at = view.positions, view.lengths, view.scaling, view.window
        return _tried("masked_prefill", lambda: kernels.prefill.attend(*tensors, keep, *at))
    if kernels.decode.suits(*tensors):
        if 1 < keep.shape[1] < view.query.shape[1]:
            keep = keep.repeat_interleave(view.group, dim=1)
        seen = keep if within else keep & view.visible()
        return _tried("masked_decode", lambda: kernels.decode.attend(*tensors, seen, view.scaling))
    return None


def count(view: AttentionView, keep: torch.Tensor, tile: tuple[int, int]) -> tuple[torch.Tensor, ...] | None:
    """Pairs that are kept and seen: of the masks, of their unions over groups, and those seen in touched tiles.

    Args:
        view: The rows.
        keep: Bool [rows, masks, queries, keys], a mask for each head, for each key head or for all.
        tile: Queries and keys of a tile.
    """
    if not usable(view.query) or (kernels := _kernels()) is None:
        return None
    masks = keep.expand(len(view.query), -1, view.query.shape[2], view.key.shape[2])
    groups = 1 if masks.shape[1] == 1 else view.key.shape[1]
    at = view.positions, view.lengths
    found = _tried("tallies", lambda: kernels.tallies.count(masks, *at, groups, tile, view.window))
    return None if found is None else tuple(found.unbind())


def block_mass(rows: AttentionView, size: int) -> torch.Tensor | None:
    """Attention weights summed over blocks, float32 [rows, heads, query_blocks, key_blocks]; rows begin together."""
    if not (usable(rows.query) and _plain(rows)) or (kernels := _kernels()) is None:
        return None
    if not kernels.mass.suits(rows.query, rows.key, size):
        return None
    start, at = int(rows.geometry.positions[0, 0]), (rows.positions, rows.lengths)
    options = start, size, rows.scaling, rows.window
    return _tried("block_mass", lambda: kernels.mass.block_mass(rows.query, rows.key, *at, *options))


def top_keys(view: AttentionView, counts: torch.Tensor) -> torch.Tensor | None:
    """The `counts` keys [rows, queries] with the highest attention weights of those seen; of equal ones the first.

    Returns:
        Bool [rows, heads, queries, keys].
    """
    if not (usable(view.query) and _plain(view)) or (kernels := _kernels()) is None:
        return None
    if not kernels.top.suits(view.query, view.key):
        return None
    begin, end = view.seen_range()
    return _tried("top_keys", lambda: kernels.top.top_keys(view.query, view.key, counts, (begin[:, 0], end[:, 0])))


def top_mask(
    scores: torch.Tensor, counts: torch.Tensor, among: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor | None:
    """The `counts` highest scores along the last dimension, bool; of equal scores the first; see `select_mask`."""
    if not usable(scores) or scores.dtype != torch.float32 or (kernels := _kernels()) is None:
        return None
    if not 0 < scores.shape[-1] <= kernels.selection.WIDEST:
        return None
    return _tried("selection", lambda: kernels.selection.select_mask(scores, counts, among))
