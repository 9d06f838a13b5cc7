"""What kernels of Triton do with masks over keys, on GPUs where Triton is there; each gives None where it cannot."""

from __future__ import annotations

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
        from sparsebench.kernels import block_mass, masked_decode, masked_prefill, selection, tallies
    except ImportError:
        return None
    return SimpleNamespace(
        decode=masked_decode, prefill=masked_prefill, tallies=tallies, mass=block_mass, selection=selection
    )


def _plain(view: AttentionView) -> bool:
    return view.softcap is None and view.sinks is None


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
    found: torch.Tensor
    if kernels.prefill.suits(*tensors):
        found = kernels.prefill.attend(*tensors, keep, view.positions, view.lengths, view.scaling, view.window)
        return found
    if kernels.decode.suits(*tensors):
        if 1 < keep.shape[1] < view.query.shape[1]:
            keep = keep.repeat_interleave(view.group, dim=1)
        found = kernels.decode.attend(*tensors, keep if within else keep & view.visible(), view.scaling)
        return found
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
    found: torch.Tensor = kernels.tallies.count(masks, view.positions, view.lengths, groups, tile, view.window)
    return tuple(found.unbind())


def block_mass(rows: AttentionView, size: int) -> torch.Tensor | None:
    """Attention weights summed over blocks, float32 [rows, heads, query_blocks, key_blocks]; rows begin together."""
    if not (usable(rows.query) and _plain(rows)) or (kernels := _kernels()) is None:
        return None
    if not kernels.mass.suits(rows.query, rows.key, size):
        return None
    start, at = int(rows.geometry.positions[0, 0]), (rows.positions, rows.lengths)
    mass: torch.Tensor = kernels.mass.block_mass(rows.query, rows.key, *at, start, size, rows.scaling, rows.window)
    return mass


def top_mask(
    scores: torch.Tensor, counts: torch.Tensor, among: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor | None:
    """The `counts` highest scores along the last dimension, bool; of equal scores the first; see `select_mask`."""
    if not usable(scores) or scores.dtype != torch.float32 or (kernels := _kernels()) is None:
        return None
    if not 0 < scores.shape[-1] <= kernels.selection.WIDEST:
        return None
    mask: torch.Tensor = kernels.selection.select_mask(scores, counts, among)
    return mask
