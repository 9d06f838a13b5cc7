"""Correcting what a sparse model generates by the dense one, every few tokens (Zhou et al., 2024, algorithm 1).

The dense model reads a window of tokens that the sparse model generated, all at once, and writes its own keys and
values in the place of the sparse ones. The first token that it holds for too unlikely is replaced by its own choice,
and what followed is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.engine.attention import AttentionPolicy, AttentionView, attend_dense
from sparsebench.engine.flow import Flow, Lanes
from sparsebench.engine.forward import forward
from sparsebench.engine.transfer import Copies
from sparsebench.errors import InputError
from sparsebench.systems.counters import Counters

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM


@dataclass(frozen=True)
class Correction:
    """When and how generated tokens are corrected.

    Attributes:
        every: Tokens of a window.
        threshold: The least probability that the dense model must give a token.
        temperature: What its logits are divided by before.
    """

    every: int
    threshold: float
    temperature: float


@dataclass(frozen=True)
class Window:
    """The tokens of one lane whose keys the sparse model computed, and the token that it has not read yet.

    Attributes:
        lane: Its place among the lanes.
        tokens: The tokens.
        start: Position of the first of them.
        first: Index of the first of them that the dense model judges; it has read what stands before it.
    """

    lane: int
    tokens: Sequence[int]
    start: int
    first: int

    @property
    def end(self) -> int:
        """Position after the last of them."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Verdict:
    """What the dense model says of a window.

    Attributes:
        kept: How many of its tokens stay.
        logits: What it says of the token after those, [vocabulary].
    """

    kept: int
    logits: torch.Tensor


@dataclass(frozen=True)
class WindowPlaces:
    """Where the tokens of windows lie.

    Attributes:
        lanes: The lane of each window, [windows].
        ends: Position after the last token of each, [windows].
        real: Which tokens are no padding, bool [windows, tokens].
        positions: Position of each token, [windows, tokens]; -1 where padded.
        flat: Place of each among the flat tokens, [windows, tokens]; padded with 0.
    """

    lanes: torch.Tensor
    ends: torch.Tensor
    real: torch.Tensor
    positions: torch.Tensor
    flat: torch.Tensor

    @classmethod
    def of(cls, windows: Sequence[Window], device: torch.device) -> WindowPlaces:
        """Those of some windows."""
        sizes = [len(window.tokens) for window in windows]
        lanes = torch.tensor([window.lane for window in windows], device=device)
        ends = torch.tensor([window.end for window in windows], device=device)
        steps = torch.arange(max(sizes), device=device).expand(len(windows), -1)
        real = steps < torch.tensor(sizes, device=device)[:, None]
        starts = torch.tensor([window.start for window in windows], device=device)
        positions = torch.where(real, steps + starts[:, None], -1)
        return cls(lanes, ends, real, positions, torch.where(real, real.flatten().cumsum(0).reshape(real.shape) - 1, 0))

    def to(self, device: torch.device) -> WindowPlaces:
        """A copy for layers on another device."""
        return WindowPlaces(*(getattr(self, field.name).to(device) for field in fields(self)))


class WindowRows:
    """Several queries for each of some lanes, whose keys and values take the place of what the lanes hold."""

    def __init__(self, lanes: Lanes, windows: Sequence[Window], device: torch.device) -> None:
        self.lanes = lanes
        places = WindowPlaces.of(windows, device)
        self.positions = places.positions[places.real]
        """Position of each flat token."""
        self.places = Copies(places, device, WindowPlaces.to)

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
        """Dense attention; query [1, heads, tokens, dim] in, [1, tokens, heads, value_dim] out."""
        keys, values = self.lanes.layer(layer)
        places = self.places[query.device]
        real = places.real
        lane, at = places.lanes[:, None].expand(real.shape)[real], places.positions[real]
        keys[lane, :, at] = key[0].transpose(0, 1)
        values[lane, :, at] = value[0].transpose(0, 1)
        longest = int(places.ends.max())
        view = AttentionView(
            query[0].transpose(0, 1)[places.flat].transpose(1, 2),
            keys[places.lanes, :, :longest],
            values[places.lanes, :, :longest],
            places.positions,
            places.ends,
            scaling,
            layer,
            decode=False,
            **options,
        )
        return attend_dense(view).transpose(1, 2)[real][None]


def verdicts(system: CausalLM, lanes: Lanes, windows: Sequence[Window], policy: Correction) -> list[Verdict]:
    """What the dense model says of windows, in one pass; the lanes hold its keys and values after it.

    To methods that act in decode the pass is prefill, which is dense.
    """
    device = system.device
    rows = WindowRows(lanes, windows, device)
    ids = torch.tensor([token for window in windows for token in window.tokens], device=device)
    flow = Flow(None, rows, torch.zeros_like(ids, dtype=torch.bool), rows.positions, rows.positions + 1)
    counters, system.counters = system.counters, Counters()
    try:
        logits = forward(system, flow, ids, rows.positions, torch.arange(len(ids), device=device))
    finally:
        system.counters = counters
    _count_check(system, windows)
    parts = torch.split(logits, [len(window.tokens) for window in windows])
    return [_verdict(window, part, policy) for window, part in zip(windows, parts, strict=True)]


def _verdict(window: Window, logits: torch.Tensor, policy: Correction) -> Verdict:
    judged = torch.tensor(window.tokens[window.first :], device=logits.device)
    before = logits[window.first - 1 : len(logits) - 1].float() / policy.temperature
    likelihood = torch.softmax(before, dim=-1).gather(1, judged[:, None])[:, 0]
    refused = (~(likelihood >= policy.threshold)).nonzero()[:, 0].tolist()
    kept = window.first + refused[0] if refused else len(window.tokens)
    return Verdict(kept, logits[kept - 1])


def _count_check(system: CausalLM, windows: Sequence[Window]) -> None:
    """Count checks, and the work and the bytes of weights and keys that each takes at batch 1."""
    system.counters.add("decode.correction.checks", len(windows))
    try:
        shape = system.shape
    except InputError:
        return  # an architecture whose cost is not modelled has none
    for window in windows:
        count = len(window.tokens)
        work = count * (shape.token_flops + 2 * shape.head_params)
        work += shape.heads * shape.pair_flops * shape.pairs(window.start, count)
        weights = (shape.stored_params + shape.head_params) * shape.bytes_per_weight
        keys = shape.kv_heads * shape.key_bytes * shape.pairs(window.end - 1, 1)
        system.counters.add("decode.correction_flops", work)
        system.counters.add("decode.correction_bytes", weights + keys)


def count_moved(system: CausalLM, positions: Sequence[int]) -> None:
    """Count steps of the sparse model as work of correcting: their tokens were taken back.

    What is counted as decode is then what the dense model would have decoded for the same text. Each step takes with
    it the mean of what the steps' activations saved.

    Args:
        system: The model.
        positions: Position of each token that was read in vain.
    """
    _move(system, positions, 1)


def count_spared(system: CausalLM, position: int) -> None:
    """Count a step that the sparse model did not make, since the dense one had said what comes next."""
    _move(system, [position], -1)


def _move(system: CausalLM, positions: Sequence[int], sign: int) -> None:
    sums, count = system.counters.sums, sign * len(positions)
    share = count / sums["decode.tokens"] if sums["decode.tokens"] else 0.0
    saved = share * sums.get("decode.activation.zeros", 0.0)
    for name in [name for name in sums if name.startswith("decode.activation.")]:
        sums[name] *= 1 - share
    system.count_queries("decode", [position + 1 for position in positions], -sign)
    system.counters.add("decode.scored", -count)
    system.counters.add("decode.correction.steps", count)
    try:
        shape = system.shape
    except InputError:
        return
    pairs = sign * sum(shape.pairs(position, 1) for position in positions)
    linear = count * shape.linear_params - saved
    work = 2 * (linear + count * shape.head_params) + shape.heads * shape.pair_flops * pairs
    read = (linear + count * shape.head_params) * shape.bytes_per_weight + shape.kv_heads * shape.key_bytes * pairs
    system.counters.add("decode.correction_flops", work)
    system.counters.add("decode.correction_bytes", read)
