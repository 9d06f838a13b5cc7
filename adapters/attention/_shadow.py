"""What ShadowKV remembers of a prompt, and how decode reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.attention._allowance import Allowance
from sparsebench.adapters.attention._estimate import grouped
from sparsebench.adapters.attention._eviction import CachePolicy, Held, Recall, best
from sparsebench.adapters.attention._gathered import Tally
from sparsebench.adapters.attention._selection import Given, Selection
from sparsebench.engine.attention import AttentionView, scores

if TYPE_CHECKING:
    from sparsebench.adapters.attention._rotary import Rotary
    from sparsebench.adapters.attention.shadowkv import ShadowKV


class Chunks(Recall):
    """Landmarks, rebuilt keys and outlying chunks of each prompt."""

    method: ShadowKV

    def cut(self, prompt: AttentionView, allowance: Allowance, windows: tuple[int | None, ...]) -> Held:
        """What is remembered of one prompt: `keys` are those that stay as they are."""
        keys = prompt.key[0].float()
        rotary: Rotary = self.prepared.state
        rebuilt = low_rank(keys, rotary, prompt.layer, self.method.dimensions(keys.shape[0] * keys.shape[2]))
        size = self.method.chunk
        count = keys.shape[1] // size
        chunks = keys[:, : count * size].reshape(len(keys), count, size, keys.shape[2])
        landmarks = chunks.mean(dim=2)
        likeness = torch.nn.functional.cosine_similarity(chunks, landmarks[:, :, None], dim=-1).amin(dim=-1)
        everywhere = torch.ones_like(likeness[:1], dtype=torch.bool)
        whole = best(-likeness, everywhere, self.method.outlying(keys.shape[1])) if count else everywhere
        whole[:, max(0, count - self.method.local) :] = True
        stays = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)  # keys after the last full chunk stay
        stays[:, : count * size] = whole.repeat_interleave(size, dim=1)
        return Held(stays, more={"rebuilt": rebuilt.to(prompt.key.dtype), "landmarks": landmarks})

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        stacked = self.stack(view)
        size, keys = self.method.chunk, view.key.shape[2]
        place = torch.arange(keys, device=view.key.device)
        whole = torch.nn.functional.pad(stacked.keys, (0, keys - stacked.keys.shape[2]))[:, :, None]
        always = (whole | (place >= stacked.lengths[:, None, None, None])) & view.visible()
        if "landmarks" not in stacked.more or not stacked.more["landmarks"].shape[2]:
            return Given(always)
        landmarks = stacked.more["landmarks"]
        mass = self._mass(view, landmarks, stacked.lengths)
        first = torch.arange(landmarks.shape[2], device=view.key.device) * size
        full = (first + size <= stacked.lengths[:, None])[:, None, None]
        seen = full & view.visible()[..., (first + size - 1).clamp(max=keys - 1)]
        free = seen & ~stacked.keys[..., (first + size - 1).clamp(max=stacked.keys.shape[2] - 1)][:, :, None]
        counts = allowance.counts(view)[:, None].clamp(min=1)
        room = ((counts - always.sum(dim=-1)).clamp(min=0) / size).round().long()
        everything = view.positions[:, None] + 1 <= counts
        room = torch.where(everything, landmarks.shape[2], room)
        chosen = best(mass, free, room)
        flops = self._flops(view, seen, chosen)
        chosen = chosen.repeat_interleave(size, dim=-1)[..., :keys]
        chosen = torch.nn.functional.pad(chosen, (0, keys - chosen.shape[-1]))
        return Given(always | (chosen & (place < stacked.lengths[:, None, None, None])), flops)

    def _mass(self, view: AttentionView, landmarks: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The largest softmaxed score that a head of a group gives a landmark, [rows, kv_heads, queries, landmarks]."""
        number = torch.arange(landmarks.shape[2], device=landmarks.device)
        there = number < (lengths // self.method.chunk)[:, None]
        like = replace(view, key=landmarks.to(view.query.dtype), softcap=None)
        weights = torch.softmax(scores(like).masked_fill(~there[:, None, None], -torch.inf), dim=-1).nan_to_num()
        return grouped(weights, view.group, 1).amax(dim=2)

    def _flops(self, view: AttentionView, seen: torch.Tensor, chosen: torch.Tensor) -> float:
        """Products with the landmarks that a query sees, and rebuilding the keys that are read."""
        width = view.key.shape[1] * view.key.shape[3]
        landmarks = 2.0 * view.query.shape[1] * view.query.shape[3] * float(seen.sum())
        each = 2.0 * self.method.dimensions(width) * view.key.shape[3]
        return landmarks + each * self.method.chunk * float(chosen.sum())


def low_rank(keys: torch.Tensor, rotary: Rotary, layer: int, rank: int) -> torch.Tensor:
    """Keys of one prompt, factorised before their rotation over all heads together, and turned again.

    Args:
        keys: float32 [kv_heads, keys, dim].
        rotary: The model's rotary embedding.
        layer: Index of the layer.
        rank: Dimensions that are left.
    """
    heads, count, width = keys.shape
    if rank >= min(count, heads * width):
        return keys
    positions = torch.arange(count, device=keys.device)
    flat = rotary.rotate(keys, positions, layer, back=True).transpose(0, 1).reshape(count, heads * width)
    left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
    near = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    return rotary.rotate(near.reshape(count, heads, width).transpose(0, 1), positions, layer)


class ShadowPolicy(CachePolicy):
    """Attends in decode to rebuilt keys in the place of those that are not kept."""

    method: ShadowKV
    selector: Chunks

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        view = view if view.states else self._remembered(view)
        return super().attend(self._rebuilt(view) if view.decode else view)

    def _rebuilt(self, view: AttentionView) -> AttentionView:
        stacked = self.selector.stack(view)
        if "rebuilt" not in stacked.more:
            return view
        longest = stacked.keys.shape[2]
        before = torch.arange(longest, device=view.key.device) < stacked.lengths[:, None]
        changed = (before[:, None] & ~stacked.keys)[..., None]
        head = torch.where(changed, stacked.more["rebuilt"], view.key[:, :, :longest])
        return replace(view, key=torch.cat([head, view.key[:, :, longest:]], dim=2))

    def _count_resident(self, view: AttentionView, tally: Tally) -> float:
        stacked, shape = self.selector.stack(view), self.shape
        held = 0.0
        queries = (view.positions >= 0).sum(dim=1).tolist()
        for row, (one, count) in enumerate(zip(stacked.held, queries, strict=True)):
            prompt = self.method.held_bytes(shape, one.length, 0) if one.length else 0.0
            own = prompt + shape.key_bytes * float(one.keys.sum())
            after = view.positions[row][view.positions[row] >= 0] + 1 - one.length
            held += count * own + shape.kv_heads * shape.key_bytes * float(after.sum())
        return held
