"""What a cache method remembers of each sequence, and the policy that lets it look at prompts and cut them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from sparsebench.adapters.attention._allowance import Allowance, row_spans
from sparsebench.adapters.attention._cache import (
    DOUBT,
    CacheAdapter,
    PromptAdapter,
    StepwiseCache,
    among_alike,
    reachable,
    unsound,
)
from sparsebench.adapters.attention._estimate import grouped
from sparsebench.adapters.attention._executor import SelectivePolicy
from sparsebench.adapters.attention._gathered import Tally
from sparsebench.adapters.attention._kept import KeptCache, kept_tensors, slots
from sparsebench.adapters.attention._rows import alone
from sparsebench.adapters.attention._selection import ByQuery, Given, Selection, top_mask
from sparsebench.engine.attention import AttentionView, Geometry, scores
from sparsebench.engine.transfer import sent
from sparsebench.errors import InputError
from sparsebench.systems.counters import Amount

if TYPE_CHECKING:
    from sparsebench.adapters.base import Prepared

Memory = dict[Any, Any]


@dataclass(frozen=True)
class Held:
    """What is held of one sequence in one layer.

    Attributes:
        keys: Bool [kv_heads, length]: the keys of the first `length` positions that stay; later ones are all there.
        worth: What they are worth to a method that goes on evicting, float32 [kv_heads, length].
        more: What else a method remembers, by name, each [kv_heads, n, ...].
    """

    keys: torch.Tensor
    worth: torch.Tensor | None = None
    more: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Positions that were decided on."""
        return self.keys.shape[1]


@dataclass(frozen=True)
class Together:
    """What the rows of one step hold after it, side by side.

    Attributes:
        keys: Bool [rows, kv_heads, keys].
        worth: float32 [rows, kv_heads, keys].
    """

    keys: torch.Tensor
    worth: torch.Tensor

    def of(self, rows: np.ndarray, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the rows, with room for so many keys, of which the new ones are not held and worth nothing."""
        held, worth = self.keys[:, :, :keys], self.worth[:, :, :keys]
        if not np.array_equal(rows, np.arange(len(held))):
            places = sent(rows, held.device)
            held, worth = held[places], worth[places]
        room = (0, keys - held.shape[2])
        return torch.nn.functional.pad(held, room), torch.nn.functional.pad(worth, room)


@dataclass(frozen=True)
class HeldRow:
    """One row of what is held together; see `Held`."""

    together: Together
    row: int
    length: int

    @property
    def keys(self) -> torch.Tensor:
        """See `Held`."""
        return self.together.keys[self.row, :, : self.length]

    @property
    def worth(self) -> torch.Tensor:
        """See `Held`."""
        return self.together.worth[self.row, :, : self.length]

    @property
    def more(self) -> dict[str, torch.Tensor]:
        """See `Held`."""
        return {}


@dataclass(frozen=True)
class Stacked:
    """What is held of several sequences, padded on the right with zeros.

    Attributes:
        held: One for each row.
        keys: Bool [rows, kv_heads, longest].
        lengths: Positions that were decided on, [rows].
        more: What else is remembered, by name, each [rows, kv_heads, most, ...].
    """

    held: list[Held | HeldRow]
    keys: torch.Tensor
    lengths: torch.Tensor
    more: dict[str, torch.Tensor]

    @classmethod
    def of(cls, held: list[Held | HeldRow]) -> Stacked:
        """Put together what is held of the rows of a view."""
        lengths = sent(np.array([one.length for one in held]), held[0].keys.device)
        names = max(held, key=lambda one: len(one.more)).more
        more = {name: _padded([one.more.get(name, like[:, :0]) for one in held]) for name, like in names.items()}
        return cls(held, _padded([one.keys for one in held]), lengths, more)


def _padded(parts: list[torch.Tensor]) -> torch.Tensor:
    """Tensors [kv_heads, n, ...] of unlike n as one, [rows, kv_heads, most, ...]."""
    turned = torch.nn.utils.rnn.pad_sequence([part.transpose(0, 1) for part in parts], batch_first=True)
    return turned.transpose(1, 2)


def within_reach(prompt: AttentionView) -> torch.Tensor:
    """Keys of a prompt that the first query after it sees, bool [1, keys]."""
    length = prompt.key.shape[2]
    places = torch.arange(length, device=prompt.key.device)
    return (places >= length - reachable(length, prompt.window))[None]


def best(
    score: torch.Tensor, candidates: torch.Tensor, count: int | torch.Tensor, most: int | None = None
) -> torch.Tensor:
    """The candidates with the highest scores along the last dimension, bool; of equal ones the first.

    Args:
        score: float32 [..., keys].
        candidates: Bool, broadcastable to it.
        count: How many of each, an int or [...]; fewer where there are fewer candidates.
        most: See `top_mask`.
    """
    candidates = candidates.expand_as(score)
    counts = candidates.sum(dim=-1)
    if isinstance(count, int):
        counts, most = counts.clamp(max=count), count
    else:
        counts = torch.minimum(count.expand_as(counts), counts)
    # Infinite scores are kept apart from keys that are no candidates.
    finite = score.float().clamp(-3e38, 3e38)
    return top_mask(finite.masked_fill(~candidates, -torch.inf), counts, most) & candidates


class RememberingPolicy(SelectivePolicy):
    """Attends with a method that remembers something of each sequence, in plain calls of the model too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plain: list[Memory] = []

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        return super().attend(view if view.states else self._remembered(view))

    def _remembered(self, view: AttentionView) -> AttentionView:
        """A plain call of the model brings no states: rows are those of the last prefill, in the same order."""
        if len(self.plain) != len(view.lengths) or (not view.decode and view.layer == 0):
            self.plain = [{} for _ in view.lengths]
        ends = view.lengths.tolist()
        for memory, start, end in zip(self.plain, view.positions.amax(dim=1).tolist(), ends, strict=True):
            if view.decode and memory.get(("end", view.layer)) != start:
                raise InputError(
                    f"{self.method.card.id}: a decoded token does not follow the tokens before it",
                    "call the model on the whole prompt first, then token by token; caches that drop what lies outside "
                    "a sliding window do not work in plain calls",
                )
            memory["end", view.layer] = end
        return replace(view, states=[[memory] for memory in self.plain])


class CachePolicy(RememberingPolicy):
    """Attends in prefill as the member before it does, and lets the method cut each prompt; decode reads the rest."""

    method: PromptAdapter
    selector: Recall

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.caches: dict[int, KeptCache] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        view = view if view.states else self._remembered(view)
        out = self._attend_kept(view) if self._drops(view) else super().attend(view)
        if not view.decode and view.layer not in self.dense_layers:
            self._cut(view)
        return out

    def _drops(self, view: AttentionView) -> bool:
        """Whether decoded queries find only what was kept of their prompts."""
        executed = self.method.mode == "executed" and self.selector.drops
        return executed and view.decode and "decode" in self.phases and view.layer not in self.dense_layers

    def _attend_kept(self, view: AttentionView) -> torch.Tensor:
        stacked = self.selector.stack(view)
        cache = self.caches.get(view.layer)
        if cache is None or cache.stacked is not stacked:
            cache = self.caches[view.layer] = KeptCache.of(stacked, view)
        out, tally = cache.attend(view)
        self._count(view, "decode", tally, 0.0)
        return out

    def _cut(self, view: AttentionView) -> None:
        doubts: list[torch.Tensor] = []
        for row in range(len(view.lengths)):
            own = alone(view, row)
            length = own.query.shape[2]
            if not length:
                continue
            if own.geometry.positions[0, 0] != 0 or own.key.shape[2] != length:
                raise InputError(f"{self.method.card.id} looks at whole prompts, and this one comes in parts")
            held = self.selector.cut(own, self.allowance, self.shape.windows)
            view.states[row][-1][self.method.card.id, view.layer] = held
            doubts += [own.geometry.memo[DOUBT]] if DOUBT in own.geometry.memo else []
            flops, read = self.method.scoring(self.shape, length, view.window)
            self.system.counters.add("prefill.attention.index_flops", flops)
            self.system.counters.add("prefill.attention.index_bytes", read)
        if doubts and bool(torch.stack(doubts).any()):
            raise unsound(self.method.card.id, view.layer)

    def _count(self, view: AttentionView, phase: str, tally: Tally, index_flops: Amount | None) -> None:
        super()._count(view, phase, tally, index_flops)
        if phase == "decode":
            dense = view.key.shape[1] * view.dense_pairs() * self.shape.key_bytes
            self.system.counters.add("decode.kv_bytes_resident", self._count_resident(view, tally))
            self.system.counters.add("decode.kv_bytes_resident_dense", dense)

    def _count_resident(self, view: AttentionView, tally: Tally) -> Amount:
        """Bytes held while each query ran, summed over queries.

        Where evicted keys are gone it is the slots of the tensors that are left and of the tokens after them, in layers
        with a window no more than it has; else what a query reads, which is all that would be held of its
        sequence. Entries have the bytes of the shape whatever the dtype, as those of the dense cache beside them.
        """
        if not self._drops(view):
            return tally.union * self.shape.key_bytes
        held = 0
        for one, positions in zip(self.selector.stack(view).held, view.geometry.positions, strict=True):
            places = slots(one) + positions[positions >= 0] + 1 - one.length
            held += int((places if view.window is None else np.minimum(places, view.window)).sum())
        return held * view.key.shape[1] * self.shape.key_bytes


class Recall(ABC):
    """What a method remembers of prompts, and what it lets decoded queries read of them; see `Selector`."""

    method: PromptAdapter
    drops: ClassVar[bool] = False
    """Whether what is not held of a prompt is never read again, and can be dropped."""

    def __init__(self, method: PromptAdapter, prepared: Prepared) -> None:
        self.method = method
        self.prepared = prepared
        self._stacked: dict[int, Stacked] = {}

    @abstractmethod
    def cut(self, prompt: AttentionView, allowance: Allowance, windows: tuple[int | None, ...]) -> Held:
        """What stays of one prompt.

        Args:
            prompt: One row without padding.
            allowance: How much of it may stay.
            windows: What each of the model's layers sees; see `ModelShape.windows`.
        """

    @abstractmethod
    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """See `Selector`; a layer that attends densely has its whole cache, and what was known of it goes."""
        self._stacked.pop(view.layer, None)

    def stack(self, view: AttentionView) -> Stacked:
        """What is held of all rows."""
        held = [held_of(view, row, self.method.card.id) for row in range(len(view.lengths))]
        before = self._stacked.get(view.layer)
        # From step to step the same sequences come again.
        if before is None or [*map(id, before.held)] != [*map(id, held)]:
            before = self._stacked[view.layer] = Stacked.of(held)
        return before


class KeptKeys(Recall):
    """What was kept of each prompt, and everything after it."""

    method: CacheAdapter
    drops: ClassVar[bool] = True

    def cut(self, prompt: AttentionView, allowance: Allowance, windows: tuple[int | None, ...]) -> Held:
        """See `Recall.cut`."""
        available = reachable(prompt.key.shape[2], prompt.window)
        count = self.method.held(allowance, available, *among_alike(windows, prompt.layer))
        keys = self.method.keep(prompt, count, self.prepared)
        return Held(keys, more=kept_tensors(prompt, keys) if self.method.mode == "executed" else {})

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        stacked = self.stack(view)
        kept, lengths = stacked.keys, stacked.lengths[:, None, None, None]

        def rule(part: AttentionView) -> torch.Tensor:
            keys = torch.arange(part.key.shape[2], device=kept.device)
            room = max(0, len(keys) - kept.shape[2])
            own = torch.nn.functional.pad(kept[:, :, : len(keys)], (0, room))[:, :, None]
            return own | ((keys >= lengths) & (keys <= part.positions[:, None, :, None]))

        return ByQuery(rule)


class StepByStep(KeptKeys):
    """Evicts before each decoded query, from what the queries before it left."""

    method: StepwiseCache
    drops: ClassVar[bool] = False

    def cut(self, prompt: AttentionView, allowance: Allowance, windows: tuple[int | None, ...]) -> Held:
        """The prompt as it is, and what its keys are worth."""
        return Held(
            self.method.keep(prompt, prompt.key.shape[2], self.prepared),
            self.method.checked_score(prompt, self.prepared),
        )

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        held, worth = self._before(view)
        mask = []
        for query in range(view.query.shape[2]):
            one = one_query(view, query)
            reads, after = self._step(one, allowance, held, worth)
            real = (one.positions >= 0)[:, :, None]
            held, worth = torch.where(real, reads, held), torch.where(real, after, worth)
            mask.append(reads & real)
        all_rows = Together(held, worth)
        for row, length in enumerate(view.geometry.lengths.tolist()):
            view.states[row][-1][self.method.card.id, view.layer] = HeldRow(all_rows, row, length)
        return Given(torch.stack(mask, dim=2))

    def _before(self, view: AttentionView) -> tuple[torch.Tensor, torch.Tensor]:
        """What is held before the first query of each row, and what it is worth; both [rows, kv_heads, keys]."""
        rows, kv_heads, keys = len(view.lengths), view.key.shape[1], view.key.shape[2]
        before = [held_of(view, row, self.method.card.id) for row in range(rows)]
        for row, one in enumerate(before):
            if one.length != first_position(view, row):
                raise InputError(f"{self.method.card.id}: a text went back to before what was evicted since")
        # From step to step the same sequences come again, and lie together as the last step left them.
        together = before[0].together if isinstance(before[0], HeldRow) else None
        if together is not None and all(isinstance(one, HeldRow) and one.together is together for one in before):
            places = np.array([one.row for one in before if isinstance(one, HeldRow)])
            return together.of(places, keys)
        held = torch.zeros((rows, kv_heads, keys), dtype=torch.bool, device=view.key.device)
        worth = torch.zeros((rows, kv_heads, keys), device=view.key.device)
        for row, one in enumerate(before):
            if one.worth is not None:
                held[row, :, : one.length], worth[row, :, : one.length] = one.keys, one.worth
        return held, worth

    def _step(
        self, one: AttentionView, allowance: Allowance, held: torch.Tensor, worth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What one query of each row reads, and what keys are worth after it; both [rows, kv_heads, keys]."""
        visible = one.visible()[:, :, 0]
        at = one.positions.clamp(min=0)[:, :, None]
        places = torch.arange(held.shape[2], device=held.device)
        counts = self._room(one, allowance)
        room, last = sent(counts, held.device)
        protected = places >= at - last[:, None, None]
        most = int(counts[0].max(initial=0))
        stays = best(worth.masked_fill(protected, torch.inf), held & visible, room[:, None], most)
        reads = (stays | (places == at)) & visible
        weights = weights_over(one, reads.repeat_interleave(one.group, dim=1)[:, :, None])
        after = self.method.update(worth, grouped(weights, one.group, 1)[:, :, :, 0])
        return reads, after.masked_fill(places > at, 0.0)

    def _room(self, one: AttentionView, allowance: Allowance) -> np.ndarray:
        """Keys that each query may read beside its own, and how many of the last are among them, int64 [2, rows]."""
        seen = (one.geometry.positions[:, 0] + 1).clip(min=1, max=one.window)
        counts = [self.method.held(allowance, n, one.layer, 1) - 1 for n in seen.tolist()]
        return np.array([counts, [self.method.recent(count) for count in counts]], dtype=np.int64)


def one_query(view: AttentionView, query: int) -> AttentionView:
    """One query of each row."""
    if view.query.shape[2] == 1:
        return view
    known, positions = view.geometry, view.positions[:, query : query + 1]
    there = Geometry(known.positions[:, query : query + 1], known.lengths, (positions, view.lengths))
    return replace(view, query=view.query[:, :, query : query + 1], positions=positions, aligned=False, known=there)


def held_of(view: AttentionView, row: int, method: str) -> Held | HeldRow:
    """What the queries of a row find: what was held at the end of the nearest ancestor that has been through the layer.

    Raises:
        InputError: Nothing is known of the tokens before them.
    """
    start = first_position(view, row)
    for memory in reversed(view.states[row]):
        found: Held | HeldRow | None = memory.get((method, view.layer))
        if found is not None and found.length <= start:
            return found
    if start:
        raise InputError(
            f"{method}: nothing was kept of the {start} tokens before a decoded one",
            "in a stack the cache method comes last",
        )
    none = Held(torch.zeros((view.key.shape[1], 0), dtype=torch.bool, device=view.key.device))
    view.states[row][-1][method, view.layer] = none
    return none


def first_position(view: AttentionView, row: int) -> int:
    """Position of the first query of a row; 0 where it has none."""
    return row_spans(view)[row][0]


def weights_over(view: AttentionView, keep: torch.Tensor) -> torch.Tensor:
    """Attention weights over the keys that `keep` names, float32 [rows, heads, queries, keys]."""
    logits = scores(view).masked_fill(~keep, -torch.inf)
    if view.sinks is None:
        return torch.softmax(logits, dim=-1).nan_to_num()
    sinks = view.sinks.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
