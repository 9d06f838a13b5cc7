"""The account of a finished cell: its FLOPs and bytes, dense and sparse, line by line, from what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from sparsebench.budget import parse_pattern
from sparsebench.cost import PHASES, ModelShape, Phase
from sparsebench.systems.counters import windowed

ACTIVE_ZEROS, ACTIVE_BYTES = "zeros in active weights", "bytes of active weights"
"""Ratios that a pruned mixture of experts realises: of the weights that run for a token, on average over experts, those
that are zero, and bytes over those of 16 bits a weight."""


@dataclass(frozen=True)
class WeightStorage:
    """How the weights of the blocks' linear layers are stored.

    Attributes:
        sparsity: Share of zeros in them.
        form: `dense`, `bitmap` (kept values and one bit for each weight), or a pattern `n:m` (n zeros in m; kept values
            and the place of each in its group).
        bits: Bits of a weight where they were counted; they go before `form`.
    """

    sparsity: float = 0.0
    form: str = "dense"
    bits: float | None = None

    @property
    def name(self) -> str:
        """The form in words."""
        return self.form if self.bits is None else f"{self.bits:.4g} bits"

    def bytes_of(self, weights: float, bytes_per_weight: float) -> float:
        """Bytes of so many weights, zeros counted among them.

        Raises:
            InputError: There is no such form.
        """
        if self.bits is not None:
            return weights * self.bits / 8
        if self.form == "dense":
            return weights * bytes_per_weight
        kept = weights * (1 - self.sparsity)
        if self.form == "bitmap":
            return kept * bytes_per_weight + weights / 8
        _, group = parse_pattern(self.form)
        return kept * (bytes_per_weight + ceil(log2(group)) / 8)


@dataclass(frozen=True)
class Counted:
    """What a system counted in one phase of a cell.

    Attributes:
        tokens: Tokens that ran.
        pairs: (query, key) pairs that dense attention has for them, summed over query heads and layers.
        more: Pairs that the model has with the layers that were removed from it, for each pair of those that ran.
        kept: Those that were attended.
        union: Keys read: the union over the query heads of a group, summed over queries, key heads and layers.
        tiles: Pairs in tiles of which at least one pair was attended; None: not counted.
        index_flops: Work of estimating and selecting.
        index_bytes: Bytes that the index reads.
        correction_flops: Work of repairing.
        correction_bytes: Bytes that repairing reads.
        activation_zeros: Share of the linear layers' multiply-adds whose input is zero.
        scored: Tokens whose logits were computed.
    """

    tokens: float
    pairs: float
    kept: float
    union: float
    tiles: float | None = None
    index_flops: float = 0.0
    index_bytes: float = 0.0
    correction_flops: float = 0.0
    correction_bytes: float = 0.0
    activation_zeros: float = 0.0
    scored: float = 0.0
    more: float = 1.0

    @classmethod
    def of(cls, shape: ModelShape, sums: Mapping[str, float], phase: Phase, whole: ModelShape | None = None) -> Counted:
        """From the sums of `systems.counters.Counters`.

        Where no attention method was attached, attention was dense and has all pairs that causality and windows leave.

        Args:
            shape: The model as it ran.
            sums: What was counted.
            phase: Of which phase.
            whole: The model before layers were removed from it; None: none were.
        """

        def get(name: str) -> float:
            return float(sums.get(f"{phase}.{name}", 0.0))

        def dense(model: ModelShape) -> float:
            names = [f"{phase}.causal_pairs" if w is None else windowed(phase, w) for w in model.windows if w != 0]
            return sum(float(sums.get(name, get("causal_pairs"))) for name in names)

        ran = dense(shape)
        pairs = get("attention.visible") or ran * shape.heads
        chosen = get("attention.visible") > 0
        multiply_adds = get("tokens") * shape.linear_params
        return cls(
            tokens=get("tokens"),
            pairs=pairs,
            kept=get("attention.kept") if chosen else pairs,
            union=get("attention.union") if chosen else pairs * shape.kv_heads / shape.heads,
            tiles=get("attention.tiles") if f"{phase}.attention.tiles" in sums else None,
            index_flops=get("attention.index_flops"),
            index_bytes=get("attention.index_bytes"),
            correction_flops=get("correction_flops"),
            correction_bytes=get("correction_bytes"),
            activation_zeros=get("activation.zeros") / multiply_adds if multiply_adds else 0.0,
            scored=get("scored"),
            more=dense(whole) / ran if whole is not None and ran else 1.0,
        )


@dataclass(frozen=True)
class Line:
    """One line of an account.

    Attributes:
        phase: Where the cost arises.
        unit: `flops`, or `bytes` for each token of the phase.
        item: What costs: linear, attention, head, index, correction, weights, keys.
        how: The sum in words and numbers.
        dense: What the dense model pays.
        sparse: What the sparse one pays.
    """

    phase: Phase
    unit: Literal["flops", "bytes"]
    item: str
    how: str
    dense: float
    sparse: float


@dataclass(frozen=True)
class Account:
    """Everything that a finished cell cost, line by line."""

    lines: tuple[Line, ...]

    def ratio(self, unit: str, phase: Phase | None = None) -> float | None:
        """Sparse over dense, of one phase or of the whole; None where the dense model pays nothing."""
        chosen = [line for line in self.lines if line.unit == unit and phase in (None, line.phase)]
        dense = sum(line.dense for line in chosen)
        return sum(line.sparse for line in chosen) / dense if dense else None

    @property
    def flops_ratio(self) -> float | None:
        """Ideal FLOPs over the dense model's, both phases together."""
        return self.ratio("flops")

    @property
    def bytes_ratio(self) -> float | None:
        """Bytes read for a decoded token, over the dense model's."""
        return self.ratio("bytes", "decode")

    def left(self, phase: Phase) -> dict[str, float]:
        """Share of the dense FLOPs of each part that is left in a phase; the work of choosing counts as attention's.

        Nothing where the phase did not run.
        """
        lines = [line for line in self.lines if line.phase == phase and line.unit == "flops"]
        parts = ("linear", "attention", "head")
        dense = {part: sum(line.dense for line in lines if line.item == part) for part in parts}
        sparse = {part: sum(line.sparse for line in lines if line.item == part) for part in parts}
        sparse["attention"] += sum(line.sparse for line in lines if line.item in ("index", "correction"))
        if not dense["linear"] or not dense["attention"]:
            return {}
        return {part: sparse[part] / whole for part, whole in dense.items() if whole}


def account(
    shape: ModelShape,
    prefill: Counted,
    decode: Counted,
    weights: WeightStorage | None = None,
    dense: ModelShape | None = None,
) -> Account:
    """FLOPs by phase, and bytes for each decoded token at batch 1, dense and sparse.

    FLOPs are ideal: every zero and every pair left out is skipped. Where weights and activations are sparse together,
    their zeros count as independent.

    Args:
        shape: The model as it ran.
        prefill: What was counted in prefill.
        decode: What was counted in decode.
        weights: How the weights that ran are stored.
        dense: The model before blocks or channels were removed from it; None: nothing was.
    """
    storage = weights or WeightStorage()
    whole = dense or shape
    lines: list[Line] = []
    for phase, counted in zip(PHASES, (prefill, decode), strict=True):
        if counted.tokens:
            lines += _flop_lines(shape, whole, phase, counted, storage)
    if decode.tokens:
        lines += _byte_lines(shape, whole, decode, storage)
    return Account(tuple(lines))


def _flop_lines(
    shape: ModelShape, whole: ModelShape, phase: Phase, counted: Counted, storage: WeightStorage
) -> list[Line]:
    pair = shape.pair_flops
    left = (1 - storage.sparsity) * (1 - counted.activation_zeros)
    head = counted.scored * 2 * shape.head_params
    lines = [
        Line(
            phase,
            "flops",
            "linear",
            f"2 x {shape.linear_params:,} weights x {counted.tokens:,.0f} tokens; weights kept "
            f"{1 - storage.sparsity:.4f}, inputs kept {1 - counted.activation_zeros:.4f}",
            counted.tokens * whole.token_flops,
            counted.tokens * shape.token_flops * left,
        ),
        Line(
            phase,
            "flops",
            "attention",
            f"2 x {shape.head_dim + shape.value_dim} x {counted.pairs:,.0f} pairs; kept {counted.kept:,.0f}",
            pair * counted.pairs * counted.more,
            pair * counted.kept,
        ),
        Line(phase, "flops", "head", f"2 x {shape.head_params:,} weights x {counted.scored:,.0f} logits", head, head),
    ]
    if counted.index_flops:
        lines.append(Line(phase, "flops", "index", "estimating and selecting", 0.0, counted.index_flops))
    if counted.correction_flops:
        lines.append(Line(phase, "flops", "correction", "repairing", 0.0, counted.correction_flops))
    return lines


def _byte_lines(shape: ModelShape, whole: ModelShape, counted: Counted, storage: WeightStorage) -> list[Line]:
    each, tokens = shape.bytes_per_weight, counted.tokens
    stored = storage.bytes_of(shape.linear_params, each) * (1 - counted.activation_zeros)
    keys = counted.pairs * shape.kv_heads / shape.heads * counted.more
    head = shape.head_params * each
    return [
        Line(
            "decode",
            "bytes",
            "weights",
            f"{shape.linear_params:,} weights x {each:g} bytes; stored as {storage.name}, columns read "
            f"{1 - counted.activation_zeros:.4f}",
            whole.linear_params * each,
            stored,
        ),
        Line("decode", "bytes", "head", f"{shape.head_params:,} weights x {each:g} bytes", head, head),
        Line(
            "decode",
            "bytes",
            "keys",
            f"{shape.key_bytes:g} bytes x {keys / tokens:,.1f} keys; read {counted.union / tokens:,.1f}",
            shape.key_bytes * keys / tokens,
            shape.key_bytes * counted.union / tokens,
        ),
        *(
            [Line("decode", "bytes", "index", "what the index reads", 0.0, counted.index_bytes / tokens)]
            if counted.index_bytes
            else []
        ),
        *(
            [Line("decode", "bytes", "correction", "what repairing reads", 0.0, counted.correction_bytes / tokens)]
            if counted.correction_bytes
            else []
        ),
    ]
