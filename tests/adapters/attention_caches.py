"""Prompts and decoded tokens for methods that remember something of each sequence."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import attention_views as views
import numpy as np
import torch
from attention_texts import random_ids

from sparsebench.adapters import Prepared, create, get
from sparsebench.adapters.attention._cache import CacheAdapter, StepwiseCache
from sparsebench.engine.attention import AttentionView
from sparsebench.engine.scoring import Scored, score
from sparsebench.systems.counters import Counters

CACHE = [name for name in views.RUNNING if issubclass(get(name), CacheAdapter)]
STEPWISE = [name for name in CACHE if issubclass(get(name), StepwiseCache)]
ONCE = [name for name in CACHE if name not in STEPWISE]
ALL = [*CACHE, "mustafar"]
REMEMBERING = [*ALL, "lserve", "shadowkv"]
"""Methods with a memory of each sequence, or a policy of their own."""
ROWS = [(60, 9), (33, 4), (1, 3), (71, 12)]
"""Prompt and decoded tokens of each row."""
ARCHITECTURES = ("llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "qwen2", "qwen3", "phi3", "mistral")


class Unturned:
    """Stands in for a rotary embedding where there is no model."""

    def rotate(self, x: torch.Tensor, positions: torch.Tensor, layer: int, back: bool = False) -> torch.Tensor:
        return x


def policy_of(name: str, shape: Any, **knobs: Any) -> Any:
    chosen = create(name, **knobs)
    system: Any = SimpleNamespace(shape=shape, counters=Counters())
    state: Any = Unturned()
    if name == "lserve":
        state = {layer: torch.arange(shape.kv_heads) % 2 == 0 for layer in range(shape.layers)}
    return chosen.adapter.policy(system, Prepared(state=state), chosen.budget, None)


def whole_view(rows=ROWS, **options: Any) -> AttentionView:
    return views.make_view([(0, prompt + decoded) for prompt, decoded in rows], **options)


def phases(view: AttentionView, rows=ROWS) -> tuple[AttentionView, AttentionView]:
    """One view of whole texts as a prefill and a decode view, padded on the right, with states as the engine has them."""
    states: list[dict] = [{} for _ in rows]
    found = []
    for decode in (False, True):
        starts = [prompt if decode else 0 for prompt, _ in rows]
        counts = [decoded if decode else prompt for prompt, decoded in rows]
        queries, keys = max(counts), max(s + c for s, c in zip(starts, counts, strict=True))
        query = torch.full((*view.query.shape[:2], queries, view.query.shape[3]), 99.0)
        positions = torch.full((len(rows), queries), -1)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            query[row, :, :count] = view.query[row, :, start : start + count]
            positions[row, :count] = torch.arange(start, start + count)
        lengths = torch.tensor([s + c for s, c in zip(starts, counts, strict=True)])
        key, value = view.key[:, :, :keys].clone(), view.value[:, :, :keys].clone()
        for row, length in enumerate(lengths.tolist()):
            key[row, :, length:], value[row, :, length:] = 99.0, 99.0
        own = [[state, {}] if decode else [state] for state in states]
        found.append(
            replace(
                view, query=query, key=key, value=value, positions=positions, lengths=lengths, decode=decode, states=own
            )
        )
    return found[0], found[1]


def reads(policy: Any, view: AttentionView, rows=ROWS) -> tuple[torch.Tensor, AttentionView]:
    """What decoded queries read after their prompts were seen: bool [rows, kv_heads, queries, keys]."""
    prefill, decode = phases(view, rows)
    policy.attend(prefill)
    selection = policy.selector.select(decode, policy.allowance)
    mask = selection.keep(decode, 0) & decode.visible()
    return mask.expand(-1, view.key.shape[1], -1, -1), decode


def some(name: str) -> dict[str, Any]:
    small = {"queries": 6} if name in ("snapkv", "ada-snapkv", "pyramidkv") else {}
    small |= {"mustafar": {"recent": 5}, "lserve": {"page": 8, "part": 4}, "shadowkv": {"chunk": 4, "rank": 0.5}}.get(
        name, {}
    )
    return {"sparsity": 0.6, **small}


REQUESTS = [
    Scored(random_ids(n, n), scored, prefill) for n, scored, prefill in ((70, 20, 55), (41, 9, 30), (100, 30, 70))
]


def logprobs(system, requests=REQUESTS) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, requests)])
