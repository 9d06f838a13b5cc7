"""What runs through a model in one forward pass: flat tokens, their phases, and the rows that attention sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from sparsebench.engine.attention import AttentionPolicy, AttentionView, Geometry, attend_dense
from sparsebench.engine.transfer import Copies, sent

MASK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Largest rows x queries x keys of one attention call, by type of device; more rows are taken in turns."""

KEYS_AT_A_TIME = {"cuda": 64}
"""Steps of decode read a multiple of so many keys, by type of device; 1 where it is not named.

Matrix products of GPUs take rows whose length is a multiple of some bytes several times as fast; masks hide the rest.
"""


class KeyValueStore:
    """Keys and values of every layer, one slot a token.

    Slots are handed out and taken back; a layer's tensors are made when the layer first runs, since only then are their
    shapes known (grouped heads, latent attention).
    """

    def __init__(self, slots: int) -> None:
        self.capacity = slots
        self._free = list(range(slots - 1, -1, -1))
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def take(self, count: int) -> list[int]:
        """`count` free slots; the store grows when it has too few."""
        if len(self._free) < count:
            more = max(count, self.capacity // 2, 256)
            self._free = list(range(self.capacity + more - 1, self.capacity - 1, -1)) + self._free
            self.capacity += more
            for layer, pair in self._layers.items():
                self._layers[layer] = (_grown(pair[0], self.capacity), _grown(pair[1], self.capacity))
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give_back(self, slots: list[int]) -> None:
        """Slots whose tokens nobody will attend to again."""
        self._free.extend(slots[::-1])

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put keys and values, each [tokens, kv_heads, dim], into `slots` [tokens], which may lie on another device."""
        if layer not in self._layers:
            self._layers[layer] = (
                key.new_empty((self.capacity, *key.shape[1:])),
                value.new_empty((self.capacity, *value.shape[1:])),
            )
        keys, values = self._layers[layer]
        slots = slots.to(keys.device)
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, each [slots, kv_heads, dim]."""
        return self._layers[layer]

    @property
    def layers(self) -> list[int]:
        """Indices of the layers that have run."""
        return sorted(self._layers)


def _grown(tensor: torch.Tensor, slots: int) -> torch.Tensor:
    more = tensor.new_empty((slots, *tensor.shape[1:]))
    more[: tensor.shape[0]] = tensor
    return more


@dataclass
class RowBatch:
    """Rows that are attended together, padded to one shape.

    Attributes:
        tokens: Place of each query in the flat chunk, [rows, queries]; padded with 0.
        keys: Slot of each key, [rows, keys]; padded with any slot.
        positions: Position of each query, [rows, queries]; -1 where padded.
        lengths: Keys of each row, [rows].
        decode: The phase of all of these rows.
        aligned: Whether the rows are whole prompts from position 0.
        span: First and last flat place when the rows lie there one after another without padding.
        states: States for each row, outermost ancestor first.
    """

    tokens: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    decode: bool
    aligned: bool
    span: tuple[int, int] | None
    states: list[list[dict[Any, Any]]] = field(default_factory=list)
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """Visible keys by window, kept from one layer to the next."""
    known: Geometry | None = None
    """Positions and lengths on the host."""

    def to(self, device: torch.device) -> RowBatch:
        """A copy for layers on another device, with masks of its own."""
        positions, lengths = self.positions.to(device), self.lengths.to(device)
        known = self.known and self.known.of_copies(positions, lengths)
        tokens, keys = self.tokens.to(device), self.keys.to(device)
        return replace(self, tokens=tokens, keys=keys, positions=positions, lengths=lengths, masks={}, known=known)

    @cached_property
    def real(self) -> torch.Tensor:
        """Places of the queries that are no padding among all of `tokens`, [queries]."""
        positions = self.positions.cpu().numpy() if self.known is None else self.known.positions
        return torch.from_numpy(np.flatnonzero(positions.reshape(-1) >= 0)).to(self.positions.device)

    def gather(self, flat: torch.Tensor) -> torch.Tensor:
        """The rows' queries out of flat tokens: [tokens, ...] in, [rows, queries, ...] out."""
        # index_select copies whole tokens; indexing goes entry by entry, at a tenth of the speed.
        return flat.index_select(0, self.tokens.reshape(-1)).view(*self.tokens.shape, *flat.shape[1:])

    def gather_keys(self, stored: torch.Tensor) -> torch.Tensor:
        """The rows' keys, or values, out of the store: [slots, ...] in, [rows, keys, ...] out."""
        return stored.index_select(0, self.keys.reshape(-1)).view(*self.keys.shape, *stored.shape[1:])

    def scatter(self, flat: torch.Tensor, result: torch.Tensor) -> None:
        """Put what came of the rows' queries, [rows, queries, ...], where their tokens lie in `flat`, [tokens, ...]."""
        places = self.tokens.reshape(-1)
        found = result.reshape(len(places), *flat.shape[1:])
        if len(self.real) < len(places):
            places, found = places[self.real], found.index_select(0, self.real)
        flat.index_copy_(0, places, found)


class PackedRows:
    """The rows of one chunk over a store."""

    def __init__(self, batches: list[RowBatch], store: KeyValueStore, slots: torch.Tensor, keep: bool) -> None:
        self.batches = Copies(batches, slots.device, lambda found, device: [batch.to(device) for batch in found])
        """By the device of the layer that attends."""
        self.store = store
        self.slots = slots
        self.keep = keep

    def attend(
        self,
        policy: AttentionPolicy | None,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Attend all rows; query [1, heads, tokens, dim] in, [1, tokens, heads, value_dim] out."""
        flat_query, flat_key, flat_value = (x[0].transpose(0, 1) for x in (query, key, value))
        if self.keep:
            self.store.write(layer, self.slots, flat_key, flat_value)
        out = query.new_empty((flat_query.shape[0], flat_query.shape[1], flat_value.shape[-1]))
        for batch in self.batches[query.device]:
            if batch.span is not None:
                first, last = batch.span
                shape = (len(batch.lengths), -1, *flat_query.shape[1:])
                q = (
                    flat_query[first:last].view(shape)
                    if len(batch.lengths) == 1
                    else flat_query[first:last].reshape(shape)
                )
                k = flat_key[first:last].reshape(len(batch.lengths), -1, *flat_key.shape[1:])
                v = flat_value[first:last].reshape(len(batch.lengths), -1, *flat_value.shape[1:])
            else:
                keys, values = self.store.layer(layer)
                q, k, v = batch.gather(flat_query), batch.gather_keys(keys), batch.gather_keys(values)
            view = AttentionView(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                batch.positions,
                batch.lengths,
                scaling,
                layer,
                batch.decode,
                states=batch.states,
                aligned=batch.aligned,
                known=batch.known,
                **options,
            )
            result = (attend_dense(view, batch.masks) if policy is None else policy.attend(view)).transpose(1, 2)
            if batch.span is not None:
                out[batch.span[0] : batch.span[1]] = result.reshape(-1, *out.shape[1:])
            else:
                batch.scatter(out, result)
        return out[None]


@dataclass(frozen=True)
class Step:
    """Where one step of decode reads and writes.

    Attributes:
        active: The lanes that take part, the first ones, [n].
        lengths: Keys of each, the new one counted, [n].
        at: Position of the new one, [n, 1].
        known: Positions and lengths on the host.
    """

    active: torch.Tensor
    lengths: torch.Tensor
    at: torch.Tensor
    known: Geometry

    @classmethod
    def of(cls, ends: np.ndarray, device: torch.device) -> Step:
        """The step that makes the first lanes so long."""
        lengths = sent(ends, device)
        at = (lengths - 1)[:, None]
        return cls(
            torch.arange(len(ends), device=device), lengths, at, Geometry(ends[:, None] - 1, ends, (at, lengths))
        )

    def to(self, device: torch.device) -> Step:
        """A copy for layers on another device."""
        at, lengths = self.at.to(device), self.lengths.to(device)
        return Step(self.active.to(device), lengths, at, self.known.of_copies(at, lengths))


class Lanes:
    """Contiguous keys and values of sequences that are being generated, one lane a sequence."""

    def __init__(self, lanes: int, capacity: int) -> None:
        self.lanes = lanes
        self.capacity = capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.now: Copies[Step]
        """The step that runs, by the device of the layer that attends; there is none before the first `step`."""
        self.longest = 0
        self.states: list[list[dict[Any, Any]]] = []

    def load(self, store: KeyValueStore, places: list[int], slots: list[np.ndarray]) -> None:
        """Copy the keys and values of sequences, each in slots of the store, into lanes."""
        if not places:
            return
        width = max(len(own) for own in slots)
        self.longest = max(self.longest, width)
        padded = np.stack([np.pad(own, (0, width - len(own)), mode="edge") for own in slots])
        source, target = torch.from_numpy(padded), torch.tensor(places)
        for layer in store.layers:
            pair = store.layer(layer)
            source, target = source.to(pair[0].device), target.to(pair[0].device)
            if layer not in self._layers:
                room = _up(self.capacity, pair[0])
                key, value = (x.new_zeros((self.lanes, x.shape[1], room, x.shape[2])) for x in pair)
                self._layers[layer] = (key, value)
            for lane, kept in zip(self._layers[layer], pair, strict=True):
                lane[target, :, :width] = kept[source].transpose(1, 2)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, each [lanes, kv_heads, capacity, dim]."""
        return self._layers[layer]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Put the keys and values of lanes into others."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        for pair in self._layers.values():
            source, target = source.to(pair[0].device), target.to(pair[0].device)
            for lane in pair:
                lane[target, :, : self.longest] = lane[source, :, : self.longest]

    def step(self, lengths: Sequence[int], states: list[list[dict[Any, Any]]], device: torch.device) -> torch.Tensor:
        """The next step feeds one token to each of the first lanes, as many as `lengths`, which counts it already.

        Returns:
            The lengths on the device, [n].
        """
        step = Step.of(np.asarray(lengths, dtype=np.int64), device)
        self.begin(step, max(lengths), states)
        return step.lengths

    def begin(self, step: Step, longest: int, states: list[list[dict[Any, Any]]]) -> None:
        """The next step, over keys up to `longest`; its tensors are read when it runs."""
        self.states, self.longest = states, longest
        self.now = Copies(step, step.active.device, Step.to)

    def attend(
        self,
        policy: AttentionPolicy | None,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """One query for each of the first lanes; query [1, heads, n, dim] in, [1, n, heads, value_dim] out."""
        keys, values = self._layers[layer]
        step = self.now[query.device]
        count, width = len(step.active), _up(self.longest, keys)
        keys[step.active, :, step.at[:, 0]] = key[0].transpose(0, 1)
        values[step.active, :, step.at[:, 0]] = value[0].transpose(0, 1)
        k, v = keys[:count, :, :width], values[:count, :, :width]
        view = AttentionView(
            query[0].transpose(0, 1)[:, :, None],
            k,
            v,
            step.at,
            step.lengths,
            scaling,
            layer,
            decode=True,
            states=self.states,
            known=step.known,
            **options,
        )
        out = attend_dense(view) if policy is None else policy.attend(view)
        return out[:, :, 0][None]


def _up(keys: int, tensor: torch.Tensor) -> int:
    """A number of keys that suits the device of a tensor, no smaller."""
    multiple = KEYS_AT_A_TIME.get(tensor.device.type, 1)
    return -(-keys // multiple) * multiple


class Rows(Protocol):
    """How attention sees the flat tokens of a pass."""

    def attend(
        self,
        policy: AttentionPolicy | None,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """The output of all tokens; query [1, heads, tokens, dim] in, [1, tokens, heads, value_dim] out."""
        ...


@dataclass
class Flow:
    """The state of one forward pass; hooks and the attention function read it.

    Attributes:
        policy: What attends in the place of dense attention; None: dense.
        rows: How attention sees the flat tokens; None in a plain forward call of the model.
        decode: Phase of each flat token, bool [tokens]; None in a plain forward call.
        positions: Position of each flat token in its sequence, [tokens].
        prompts: Length of the prefill part of each flat token's sequence, [tokens].
    """

    policy: AttentionPolicy | None = None
    rows: Rows | None = None
    decode: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
