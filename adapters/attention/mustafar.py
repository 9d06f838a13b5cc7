"""Mustafar: small entries of keys and values are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape, PhaseCosts, Request, dense_cost, window_pairs

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM


class Mustafar(AttentionAdapter):
    """The largest entries of each token's key and value, in each head; recent tokens stay whole."""

    card: ClassVar[MethodCard] = MethodCard(
        id="mustafar",
        family="attention",
        title="Mustafar",
        summary="In decode the keys and values of all but recent tokens have only their entries of largest magnitude.",
        paper=Paper(
            title="MUSTAFAR: Promoting Unstructured Sparsity for KV Cache Pruning in LLM Inference",
            authors="Donghyeon Joo and Helya Hosseini and Ramyad Hadidi and Bahar Asgari",
            year=2025,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2505.22913",
            key="joo2025mustafar",
        ),
        unit="element",
        phases=("decode",),
        budgets=("sparsity",),
        nearest="random-eviction",
        differs="leaves out entries of all keys and values, and no key",
        deviations=(
            "a budget is the share of entries left out of a pruned key or value; recent tokens come on top of it",
            "pairs are counted by the entries that are multiplied, bytes by those that are stored and a bit for each "
            "entry that could be",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ()

    recent: int = Field(32, ge=1)
    """Last tokens, a query's own among them, whose keys and values are whole."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """Every key: what is left out are entries of keys."""
        from sparsebench.adapters.attention._selection import Given

        return Given(view.visible())

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """See `AttentionAdapter.policy`."""
        from sparsebench.adapters.attention._elements import ElementPolicy

        return ElementPolicy(self, system, prepared, budget, inner)

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Predicted cost: products and bytes of the entries that stay."""
        shape: ModelShape = system.shape
        dense = dense_cost(shape, request)
        if budget is None:
            return dense
        start, count, batch = request.prompt, request.answer, request.batch
        key, value = (entries(width, 1 - budget.number) for width in (shape.head_dim, shape.value_dim))
        share = (key + value) / (shape.head_dim + shape.value_dim)
        stored = stored_bytes(shape, key, value)
        pairs = whole = held = 0.0
        for window in shape.windows:
            near = self.recent if window is None else min(window, self.recent)
            pairs, whole = pairs + window_pairs(start, count, window), whole + window_pairs(start, count, near)
            last = start + count if window is None else min(start + count, window)
            held += min(last, near) * shape.key_bytes + max(0, last - near) * stored
        read = whole * shape.key_bytes + (pairs - whole) * stored
        decode = replace(
            dense.decode,
            attention=batch * shape.heads * shape.pair_flops * (whole + share * (pairs - whole)),
            bytes_kv_read=batch * shape.kv_heads * read,
            bytes_kv_resident=batch * shape.kv_heads * held,
        )
        return PhaseCosts(dense.prefill, decode)


def entries(width: int, density: float) -> int:
    """Entries that stay of a vector; at least 1."""
    return max(1, round(density * width))


def stored_bytes(shape: ModelShape, key: float, value: float) -> float:
    """Bytes of a key with its value of which so many entries stay: the entries, and a bit for each that could."""
    width = shape.head_dim + shape.value_dim
    if key + value >= width:
        return shape.key_bytes
    return (key + value) * shape.bytes_per_entry + width / 8
