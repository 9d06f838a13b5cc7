"""Views of random rows, and what methods choose in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from sparsebench.adapters import cards, create, get
from sparsebench.adapters.attention._executor import SelectivePolicy
from sparsebench.adapters.attention._rows import per_head
from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.base import Prepared
from sparsebench.cost import ModelShape
from sparsebench.engine.attention import AttentionView
from sparsebench.systems.counters import Counters

LAYERS = 5
CARDS = {card.id: card for card in cards("attention")}
RUNNING = sorted(name for name in CARDS if not CARDS[name].needs)
"""Methods that run as they are."""
BY_SELECTION = [name for name in RUNNING if getattr(get(name), "policy", None) is AttentionAdapter.policy]
"""Methods that choose keys for each query and remember nothing from token to token; for the others see
attention_caches.py."""


def shape_of(heads: int = 4, kv_heads: int = 2, dim: int = 8, layers: int = LAYERS, window: int | None = None):
    """The shape of a model whose views `make_view` makes."""
    return ModelShape(heads * dim, layers, heads, kv_heads, dim, dim, 100, 1, 1, 1, 1, (window,) * layers)


def make_view(
    rows: Sequence[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    decode: bool = False,
    window: int | None = None,
    layer: int = 0,
    seed: int = 0,
) -> AttentionView:
    """Random rows of (position of the first query, queries), padded on the right with large numbers."""
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    queries, keys = max(count for _, count in rows), max(start + count for start, count in rows)
    view = AttentionView(
        torch.full((len(rows), heads, queries, dim), 99.0),
        torch.full((len(rows), kv_heads, keys, dim), 99.0),
        torch.full((len(rows), kv_heads, keys, dim), 99.0),
        torch.full((len(rows), queries), -1),
        torch.tensor([start + count for start, count in rows]),
        dim**-0.5,
        layer,
        decode,
        window,
        states=[[{}] for _ in rows],
    )
    for row, (start, count) in enumerate(rows):
        view.query[row, :, :count] = 1.5 * torch.randn(heads, count, dim, generator=generator)
        view.key[row, :, : start + count] = 1.5 * torch.randn(kv_heads, start + count, dim, generator=generator)
        view.value[row, :, : start + count] = torch.randn(kv_heads, start + count, dim, generator=generator)
        view.positions[row, :count] = torch.arange(start, start + count)
    return view


def alone(view: AttentionView, row: int) -> AttentionView:
    """One row without padding; written here again, so that the package's own form is put to the test."""
    count, length = int((view.positions[row] >= 0).sum()), int(view.lengths[row])
    return replace(
        view,
        query=view.query[row : row + 1, :, :count],
        key=view.key[row : row + 1, :, :length],
        value=view.value[row : row + 1, :, :length],
        positions=view.positions[row : row + 1, :count],
        lengths=view.lengths[row : row + 1],
        states=[[{}]],
    )


def prepared_for(method: Any, shape: ModelShape) -> Prepared:
    """What a calibrated method needs, without a model."""
    if method.card.id == "minference":
        patterns = torch.arange(shape.heads) % 3
        return Prepared(state={layer: patterns for layer in range(shape.layers)})
    if method.card.id == "moa":
        return Prepared(state={layer: [0.5, 1.5] * (shape.heads // 2) for layer in range(shape.layers)})
    if method.card.id == "streaming-heads":
        # The first heads of all, half of them, however they are grouped.
        first = torch.arange(shape.kv_heads) < shape.kv_heads // 2
        return Prepared(state={layer: first for layer in range(shape.layers)})
    if method.card.id != "double-sparsity":
        return Prepared()
    labels = torch.arange(method.labels(shape.head_dim)).expand(shape.heads, -1)
    return Prepared(state={layer: labels for layer in range(shape.layers)})


def executed(name: str) -> dict[str, Any]:
    """Knobs with which a method is executed in every phase in which it can be."""
    able = [phase for phase in CARDS[name].phases if phase in get(name).executes]
    return {"mode": "executed"} | ({} if len(able) == len(CARDS[name].phases) else {"phase": able[0]})


def policy_of(name: str, shape: ModelShape, inner: Any = None, **knobs: Any) -> SelectivePolicy:
    """A method at a budget, on a system that only counts."""
    chosen = create(name, **knobs)
    system: Any = SimpleNamespace(shape=shape, counters=Counters())
    return SelectivePolicy(chosen.adapter, system, prepared_for(chosen.adapter, shape), chosen.budget, inner)


def masks_of(policy: SelectivePolicy, views: Sequence[AttentionView]) -> list[torch.Tensor]:
    """What each query reads, layer by layer: bool [rows, heads, queries, keys]."""
    masks = []
    for view in views:
        whole = (*view.query.shape[:3], view.key.shape[2])
        if view.layer in policy.dense_layers:
            policy.selector.observe(view, policy.allowance)
            masks.append(view.visible().expand(whole))
        else:
            selection = policy.selector.select(view, policy.allowance)
            masks.append((per_head(selection.keep(view, 0), view) & view.visible()).expand(whole))
    return masks


def views_of(rows: Sequence[tuple[int, int]], **options: Any) -> list[AttentionView]:
    """One view for each layer."""
    return [make_view(rows, layer=layer, **options) for layer in range(LAYERS)]


def full_budget(name: str) -> list[dict[str, Any]]:
    """Every way to say that a method may read everything."""
    ways = {"sparsity": {"sparsity": 0.0}, "tokens": {"tokens": 4096}, "coverage": {"coverage": 1.0}}
    kinds = CARDS[name].budgets
    return [ways[kind] for kind in kinds] or [{"theta": 1e9}]


def some_budget(name: str) -> dict[str, Any]:
    """A budget at which something is left out."""
    kinds = CARDS[name].budgets
    if "sparsity" in kinds:
        return {"sparsity": 0.6}
    if "coverage" in kinds:
        return {"coverage": 0.6}
    return {"tokens": 24} if "tokens" in kinds else {"theta": 0.5}
