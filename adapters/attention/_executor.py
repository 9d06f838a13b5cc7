"""Running a selection: the mask over dense work, and the one place where what attention does is counted."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.attention._allowance import Allowance, row_spans
from sparsebench.adapters.attention._gathered import Tally, execute
from sparsebench.adapters.attention._rows import part_of
from sparsebench.adapters.attention._selection import Selection
from sparsebench.engine import fused
from sparsebench.engine.attention import AttentionPolicy, AttentionView, attend_dense, attend_seen

if TYPE_CHECKING:
    from sparsebench.adapters.attention.base import AttentionAdapter
    from sparsebench.adapters.base import Prepared
    from sparsebench.budget import Budget
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.counters import Amount

MASK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Rows x heads x queries x keys that are held at a time, by type of device."""
TILES = {"prefill": (64, 64), "decode": (1, 16)}
"""Queries and keys of the tiles that a kernel would run: it skips none of a tile of which one pair is kept.

Keys of a tile are a multiple of eight.
"""


class SelectivePolicy:
    """Attends with the keys that a method selects, in the phases in which it acts.

    Args:
        method: The method.
        system: Whose counters are filled.
        prepared: What the method's `prepare` left.
        budget: How sparse; None where the method takes none.
        inner: The policy of the member before it in a stack, which attends in the other phases.
    """

    def __init__(
        self,
        method: AttentionAdapter,
        system: CausalLM,
        prepared: Prepared,
        budget: Budget | None,
        inner: AttentionPolicy | None,
    ) -> None:
        self.method = method
        self.system = system
        self.shape = system.shape
        self.phases = method.phases()
        self.selector = method.selector(prepared)
        self.inner = inner
        self.dense_layers = method.dense_layers(self.shape.layers)
        allowance = Allowance.of(budget) if budget is not None else Allowance()
        self.allowance = allowance.beside_dense(self.shape.layers, len(self.dense_layers))

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        phase = "decode" if view.decode else "prefill"
        if phase not in self.phases:
            return self.inner.attend(view) if self.inner is not None else self._dense(view, phase)
        if view.layer in self.dense_layers:
            self.selector.observe(view, self.allowance)
            return self._dense(view, phase)
        selection = self.selector.select(view, self.allowance)
        # A kernel that skips what a mask leaves out makes a mask as good as gathering.
        gathered = self.method.mode == "executed" and not fused.executes(view)
        out, tally = execute(view, selection) if gathered else simulate(view, selection, TILES[phase])
        self._count(view, phase, tally, selection.index_flops)
        return out

    def _dense(self, view: AttentionView, phase: str) -> torch.Tensor:
        pairs = view.dense_pairs()
        heads, kv_heads = view.query.shape[1], view.key.shape[1]
        self._count(view, phase, Tally(heads * pairs, kv_heads * pairs, heads * pairs), index_flops=None)
        return attend_dense(view)

    def _count(self, view: AttentionView, phase: str, tally: Tally, index_flops: Amount | None) -> None:
        visible = view.query.shape[1] * view.dense_pairs()
        flops, index_bytes = (0.0, 0.0) if index_flops is None else self._index(view)
        counters = self.system.counters
        counters.attention(
            phase, tally.kept, visible, tally.union, flops if index_flops is None else flops + index_flops
        )
        counters.add(f"{phase}.attention.tiles", tally.tiles)
        counters.add(f"{phase}.attention.index_bytes", index_bytes)

    def _index(self, view: AttentionView) -> tuple[float, float]:
        """FLOPs and bytes of choosing, over all rows; the same in layers of equal window."""
        memo, key = view.geometry.memo, ("index", id(self.method), view.window)
        if key not in memo:
            each = [self.method.index(self.shape, *span, view.window) for span in row_spans(view) if span[1]]
            memo[key] = (sum(flops for flops, _ in each), sum(read for _, read in each))
        found: tuple[float, float] = memo[key]
        return found


def simulate(view: AttentionView, selection: Selection, tile: tuple[int, int]) -> tuple[torch.Tensor, Tally]:
    """Attend over the selected keys through a mask, slice by slice of queries.

    Args:
        view: The rows.
        selection: Which keys each query reads; those it does not see are left out here.
        tile: Queries and keys of the tiles to count.

    Returns:
        The output [rows, heads, queries, value_dim], and what was read.
    """
    rows, heads, queries, _ = view.query.shape
    out = view.query.new_zeros((rows, heads, queries, view.value.shape[-1]))
    tally = Tally()
    step = max(tile[0], slice_of(view) // tile[0] * tile[0])
    for first in range(0, queries, step):
        part = part_of(view, first, min(first + step, queries))
        keep = selection.keep(part, first)
        counted = fused.count(part, keep, tile)
        if counted is None:
            visible = part.visible()
            keep = keep & visible
            counted = (torch.count_nonzero(keep), _union(keep, part), _tile_pairs(keep, visible, tile))
        out[:, :, first : first + step] = attend_seen(part, keep)
        shared, kv_heads = heads // keep.shape[1], part.key.shape[1]
        kept, union, tiles = counted
        tally.add(Tally(shared * kept, (kv_heads if keep.shape[1] == 1 else 1) * union, shared * tiles))
    return out, tally


def slice_of(view: AttentionView) -> int:
    """Queries of a view for which masks are held at a time."""
    elements = MASK_ELEMENTS.get(view.query.device.type, MASK_ELEMENTS["cpu"])
    return max(1, elements // (view.query.shape[0] * view.query.shape[1] * view.key.shape[2]))


def _union(keep: torch.Tensor, view: AttentionView) -> torch.Tensor:
    """Keys read by any query head of a group, summed over queries and masks of key heads."""
    kv_heads = view.key.shape[1]
    if keep.shape[1] == view.query.shape[1] and view.group > 1:
        members = keep.reshape(len(keep), kv_heads, view.group, *keep.shape[2:]).unbind(2)
        keep = reduce(torch.bitwise_or, members)
    return torch.count_nonzero(keep)


def _tile_pairs(keep: torch.Tensor, visible: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """Visible pairs in tiles of which at least one pair is kept."""
    words = _tiled(keep, tile).view(torch.int64)  # eight flags at a time
    touched = words.any(dim=-1).any(dim=-2)
    inside = _tiled(visible, tile).sum(dim=-1).sum(dim=-2)
    return (touched * inside).sum()


def _tiled(mask: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """[..., queries, keys] as [..., query tiles, queries of a tile, key tiles, keys of a tile], padded with False."""
    queries, keys = mask.shape[-2:]
    padded = torch.nn.functional.pad(mask, (0, -keys % tile[1], 0, -queries % tile[0]))
    shape = (*mask.shape[:-2], padded.shape[-2] // tile[0], tile[0], padded.shape[-1] // tile[1], tile[1])
    return padded.contiguous().reshape(shape)
