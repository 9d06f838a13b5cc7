"""Attention over keys and values of which some entries are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.attention._executor import SelectivePolicy, slice_of
from sparsebench.adapters.attention._gathered import Tally
from sparsebench.adapters.attention._rows import part_of
from sparsebench.adapters.attention._selection import top_mask
from sparsebench.adapters.attention.mustafar import entries
from sparsebench.engine.attention import AttentionView, scores

if TYPE_CHECKING:
    from sparsebench.adapters.attention.mustafar import Mustafar


class ElementPolicy(SelectivePolicy):
    """Attends to recent keys as they are and to those before them pruned."""

    method: Mustafar

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        if not view.decode:
            return super().attend(view)
        density = 1.0 if self.allowance.density is None else self.allowance.density
        pruned = replace(view, key=largest(view.key, density), value=largest(view.value, density))
        rows, heads, queries, _ = view.query.shape
        out = view.query.new_zeros((rows, heads, queries, view.value.shape[-1]))
        step = slice_of(view)
        for first in range(0, queries, step):
            part, other = (part_of(x, first, min(first + step, queries)) for x in (view, pruned))
            near = self._near(part)
            out[:, :, first : first + step] = attend_mixed(part, other, near)
            self._tally(part, other, near)
        return out

    def _near(self, view: AttentionView) -> torch.Tensor:
        """Keys that are whole, bool [rows, 1, queries, keys]."""
        keys = torch.arange(view.key.shape[2], device=view.key.device)
        return keys > view.positions[:, None, :, None] - self.method.recent

    def _tally(self, view: AttentionView, pruned: AttentionView, near: torch.Tensor) -> None:
        """Counts, from the pruned tensors themselves, what is multiplied, read and held."""
        shape, kv_heads = self.shape, view.key.shape[1]
        width = view.key.shape[-1] + view.value.shape[-1]
        entries_left = (pruned.key != 0).sum(dim=-1) + (pruned.value != 0).sum(dim=-1)
        kept = entries_left[:, :, None].double()
        stored = torch.where(kept >= width, shape.key_bytes, kept * shape.bytes_per_entry + width / 8)
        visible = view.visible()
        whole, far = float((visible & near).sum()), visible & ~near
        multiplied = kv_heads * width * whole + float((kept * far).sum())
        held = kv_heads * shape.key_bytes * whole + float((stored * far).sum())
        tally = Tally(
            kept=round(multiplied * view.group / width),
            union=round(held / shape.key_bytes),
            tiles=view.query.shape[1] * view.dense_pairs(),
        )
        self._count(view, "decode", tally, None)
        self.system.counters.add("decode.kv_bytes_resident", held)
        self.system.counters.add("decode.kv_bytes_resident_dense", kv_heads * view.dense_pairs() * shape.key_bytes)


def largest(x: torch.Tensor, density: float) -> torch.Tensor:
    """Vectors along the last dimension with only their entries of largest magnitude; of equal ones the first."""
    count = entries(x.shape[-1], density)
    if count >= x.shape[-1]:
        return x
    return x * top_mask(x.abs(), torch.tensor(count, device=x.device))


def attend_mixed(view: AttentionView, pruned: AttentionView, near: torch.Tensor) -> torch.Tensor:
    """Attention whose keys and values are `view`'s where `near`, and `pruned`'s elsewhere.

    Args:
        view: The rows.
        pruned: The same rows with other keys and values.
        near: Bool [rows, 1, queries, keys].
    """
    logits = torch.where(near, scores(view), scores(pruned)).masked_fill(~view.visible(), -torch.inf)
    if view.sinks is not None:
        sinks = view.sinks.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        weights = torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(logits, dim=-1).nan_to_num()
    weights = weights.to(view.value.dtype)
    return _weighted(weights * near, view) + _weighted(weights * ~near, pruned)


def _weighted(weights: torch.Tensor, view: AttentionView) -> torch.Tensor:
    rows, heads, queries, keys = weights.shape
    folded = weights.reshape(rows, view.value.shape[1], view.group * queries, keys)
    return (folded @ view.value).reshape(rows, heads, queries, -1)
