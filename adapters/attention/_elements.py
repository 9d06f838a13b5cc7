"""Attention over keys and values of which some entries are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from sparsebench.adapters.attention._executor import SelectivePolicy, slice_of
from sparsebench.adapters.attention._gathered import Tally
from sparsebench.adapters.attention._rows import part_of
from sparsebench.adapters.attention._selection import top_mask
from sparsebench.adapters.attention.mustafar import entries
from sparsebench.engine.attention import AttentionView, attend_masked, scores
from sparsebench.engine.grown import recall, remember

if TYPE_CHECKING:
    from sparsebench.adapters.attention.mustafar import Mustafar

ROOM = 256
"""Keys by which what is known of them grows."""


class ElementPolicy(SelectivePolicy):
    """Attends to recent keys as they are and to those before them pruned."""

    method: Mustafar

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        if not view.decode:
            return super().attend(view)
        stay = self._stay(view)
        if view.query.shape[2] == 1:
            near = self._near(view)
            self._tally(view, stay, near)
            return attend_masked(stay.pruned(view, near[:, :, 0]), view.visible())
        pruned = stay.pruned(view)
        rows, heads, queries, _ = view.query.shape
        out = view.query.new_zeros((rows, heads, queries, view.value.shape[-1]))
        step = slice_of(view)
        for first in range(0, queries, step):
            part, other = (part_of(x, first, min(first + step, queries)) for x in (view, pruned))
            near = self._near(part)
            out[:, :, first : first + step] = attend_mixed(part, other, near)
            self._tally(part, stay, near)
        return out

    def _stay(self, view: AttentionView) -> Stay:
        """What stays of the keys of a view. Of sequences that grow step by step each key is looked at once."""
        density = 1.0 if self.allowance.density is None else self.allowance.density
        name = "entries that stay", density
        known = recall(view, name)
        stay = Stay.of(view, density) if known is None else Stay.longer(known, view, density)
        remember(view, name, stay.tensors)
        return stay

    def _near(self, view: AttentionView) -> torch.Tensor:
        """Keys that are whole, bool [rows, 1, queries, keys]."""
        keys = torch.arange(view.key.shape[2], device=view.key.device)
        return keys > view.positions[:, None, :, None] - self.method.recent

    def _tally(self, view: AttentionView, stay: Stay, near: torch.Tensor) -> None:
        """Counts, from the entries that stay, what is multiplied, read and held."""
        shape, kv_heads = self.shape, view.key.shape[1]
        width = view.key.shape[-1] + view.value.shape[-1]
        kept = stay.entries[:, :, None, : view.key.shape[2]].double()
        stored = torch.where(kept >= width, shape.key_bytes, kept * shape.bytes_per_entry + width / 8)
        visible = view.visible()
        whole, far = (visible & near).sum().double(), visible & ~near
        multiplied = kv_heads * width * whole + (kept * far).sum()
        held = kv_heads * shape.key_bytes * whole + (stored * far).sum()
        tally = Tally(
            kept=(multiplied * view.group / width).round(),
            union=(held / shape.key_bytes).round(),
            tiles=view.query.shape[1] * view.dense_pairs(),
        )
        self._count(view, "decode", tally, None)
        self.system.counters.add("decode.kv_bytes_resident", held)
        self.system.counters.add("decode.kv_bytes_resident_dense", kv_heads * view.dense_pairs() * shape.key_bytes)


@dataclass(frozen=True)
class Stay:
    """The entries that stay of the keys and values of some rows, a bit each.

    Attributes:
        entries: How many stay of a key and its value and are not zero, int32 [rows, kv_heads, keys or more].
        key: uint8 [rows, kv_heads, keys or more, bytes]; the first entry is the lowest bit. None: all stay.
        value: The same of values.
    """

    entries: torch.Tensor
    key: torch.Tensor | None
    value: torch.Tensor | None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, without those of which all entries stay."""
        named = {"entries": self.entries, "key": self.key, "value": self.value}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of(cls, view: AttentionView, density: float) -> Stay:
        """What stays where a share of the entries does."""
        key, value = largest(view.key, density), largest(view.value, density)
        entries = _left(view.key, key) + _left(view.value, value)
        bits = [None if mask is None else _packed(mask) for mask in (key, value)]
        return cls(entries, *bits)

    @classmethod
    def longer(cls, known: dict[str, torch.Tensor], view: AttentionView, density: float) -> Stay:
        """The same where the last key of each row is new."""
        rows, last = torch.arange(len(view.key), device=view.key.device), view.lengths - 1
        new = replace(view, key=view.key[rows, :, last, None], value=view.value[rows, :, last, None])
        one = cls.of(new, density).tensors
        grown = {}
        for name, tensor in known.items():
            more = view.key.shape[2] - tensor.shape[2]
            beyond = [0, 0] * (tensor.dim() - 3)
            grown[name] = pad(tensor, (*beyond, 0, more + ROOM)) if more > 0 else tensor
            grown[name][rows, :, last] = one[name][:, :, 0]
        return cls(grown["entries"], grown.get("key"), grown.get("value"))

    def pruned(self, view: AttentionView, near: torch.Tensor | None = None) -> AttentionView:
        """The view with what stays; keys that are `near`, bool [rows, 1, keys], are whole."""

        def left(x: torch.Tensor, bits: torch.Tensor | None) -> torch.Tensor:
            if bits is None:
                return x
            mask = _unpacked(bits[:, :, : x.shape[2]], x.shape[-1])
            return x * (mask if near is None else mask | near[..., None])

        return replace(view, key=left(view.key, self.key), value=left(view.value, self.value))


def largest(x: torch.Tensor, density: float) -> torch.Tensor | None:
    """The entries of largest magnitude of vectors along the last dimension, bool; of equal ones the first.

    None where all of them stay.
    """
    count = entries(x.shape[-1], density)
    return None if count >= x.shape[-1] else top_mask(x.abs(), torch.tensor(count, device=x.device), count)


def _left(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    present = x != 0
    return (present if mask is None else present & mask).sum(dim=-1, dtype=torch.int32)


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Flags along the last dimension, eight to a byte; the last byte is filled up with False."""
    padded = pad(mask, (0, -mask.shape[-1] % 8)).view(torch.uint8)
    eights = padded.reshape(*mask.shape[:-1], -1, 8) << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return eights.sum(dim=-1, dtype=torch.uint8)


def _unpacked(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` flags of each vector."""
    bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] & bits) != 0).flatten(-2)[..., :width]


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
