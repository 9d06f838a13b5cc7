"""The cache of an eviction method for real: what was evicted of a prompt is not there any more.

When a prompt is cut, the keys and values that stay are copied out, [kv_heads, most, dim], and decoded queries read
those and the tokens after the prompt; the prompt's other keys are never touched again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.attention._gathered import Tally, compact
from sparsebench.adapters.attention._rows import per_head
from sparsebench.engine.attention import AttentionView, attend_masked

if TYPE_CHECKING:
    from sparsebench.adapters.attention._eviction import Held, HeldRow, Stacked

NAMES = ("key", "value", "place")


def kept_tensors(prompt: AttentionView, keys: torch.Tensor) -> dict[str, torch.Tensor]:
    """What stays of a prompt of one row, by the names that `KeptCache` knows, each [kv_heads, most, ...].

    Args:
        prompt: One row without padding.
        keys: Which keys stay, bool [kv_heads, keys].
    """
    places, real = compact(keys[None])
    head = torch.arange(len(keys), device=keys.device)[:, None]
    key, value = (x[0][head, places[0]] for x in (prompt.key, prompt.value))
    return dict(zip(NAMES, (key, value, torch.where(real, places, -1)[0]), strict=True))


def slots(held: Held | HeldRow) -> int:
    """Keys of each key head that there is room for in what is held of a prompt."""
    return held.more["key"].shape[1] if "key" in held.more else 0


@dataclass
class KeptCache:
    """What was kept of the prompts of some rows, with room for the tokens after them.

    Attributes:
        stacked: What is held of the rows.
        key: [rows, kv_heads, room, dim]; what was kept comes first, then the tokens after each prompt.
        value: As `key`.
        place: Position of each slot's key, int64 [rows, kv_heads, room]; -1 where there is none.
        most: Slots of what was kept.
    """

    stacked: Stacked
    key: torch.Tensor
    value: torch.Tensor
    place: torch.Tensor
    most: int

    @classmethod
    def of(cls, stacked: Stacked, view: AttentionView) -> KeptCache:
        """What is held of the rows of a view, side by side."""
        rows, kv_heads = view.key.shape[:2]
        like = {"key": view.key[:, :, :0], "value": view.value[:, :, :0]}
        most = stacked.more["key"].shape[2] if "key" in stacked.more else 0
        place = torch.full((rows, kv_heads, most), -1, device=view.key.device)
        if most:
            counts = torch.tensor([one.more["place"].shape[1] if one.more else 0 for one in stacked.held])
            there = torch.arange(most) < counts[:, None]
            place = torch.where(there.to(place.device)[:, None], stacked.more["place"], -1)
            like = {name: stacked.more[name] for name in like}
        return cls(stacked, like["key"], like["value"], place, most)

    def attend(self, view: AttentionView) -> tuple[torch.Tensor, Tally]:
        """The output for decoded queries, [rows, heads, queries, value_dim], and what was read."""
        after = int((view.lengths - self.stacked.lengths).max())
        self._reserve(self.most + after)
        steps = torch.arange(after, device=view.key.device)
        at = self.stacked.lengths[:, None] + steps
        real = at < view.lengths[:, None]
        source = torch.minimum(at, view.lengths[:, None] - 1)
        rows = torch.arange(len(source), device=source.device)[:, None]
        end = self.most + after
        for kept, own in ((self.key, view.key), (self.value, view.value)):
            kept[:, :, self.most : end] = own[rows, :, source].transpose(1, 2)
        self.place[:, :, self.most : end] = torch.where(real, at, -1)[:, None]
        place, queries = self.place[:, :, None, :end], view.positions[:, None, :, None]
        keep = (place >= 0) & (place <= queries)
        if view.window is not None:
            keep &= place > queries - view.window
        short = replace(
            view,
            key=self.key[:, :, :end],
            value=self.value[:, :, :end],
            positions=torch.where(view.positions >= 0, end - 1, -1),
            lengths=torch.full_like(view.lengths, end),
            window=None,
            aligned=False,
        )
        read = torch.count_nonzero(keep)
        return attend_masked(short, per_head(keep, short)), Tally(view.group * read, read, view.group * read)

    def _reserve(self, room: int) -> None:
        """Make room for so many slots; it grows by half."""
        if room <= self.key.shape[2]:
            return
        more = max(room, self.key.shape[2] * 3 // 2) - self.key.shape[2]
        self.key, self.value = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (self.key, self.value))
        self.place = torch.nn.functional.pad(self.place, (0, more), value=-1)
