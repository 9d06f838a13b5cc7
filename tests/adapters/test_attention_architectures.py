"""Every attention method on further architectures: ungrouped heads, norms on heads, windows in some layers and in all."""

from __future__ import annotations

from typing import Any

import attention_views as views
import numpy as np
import pytest
from attention_texts import on, random_ids
from attention_views import CARDS

from sparsebench.adapters import get
from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.engine.scoring import Scored, score

ARCHITECTURES = ("gpt2", "qwen3", "mistral")
"""Without grouped heads or rotation; grouped, with norms on queries and keys; grouped, with a window in every layer."""
FULL: dict[str, dict[str, Any]] = {
    "sparsity": {"sparsity": 0.0},
    "tokens": {"tokens": 4096},
    "coverage": {"coverage": 1},
}
LESS: dict[str, dict[str, Any]] = {
    "sparsity": {"sparsity": 0.6},
    "tokens": {"tokens": 12},
    "coverage": {"coverage": 0.6},
}
FEW = {
    "mustafar": {"recent": 5},
    "lserve": {"page": 8, "part": 4},
    "shadowkv": {"chunk": 4, "rank": 0.5},
    "snapkv": {"queries": 6},
    "ada-snapkv": {"queries": 6},
    "pyramidkv": {"queries": 6},
}
"""Knobs for prompts as short as these."""


REQUESTS = [Scored(random_ids(n, n), 9, prefill) for n, prefill in ((60, 45), (33, 24), (47, 38))]
"""Prompts of several lengths, with decoded queries after them."""


def logprobs(system: Any, requests: list[Scored] = REQUESTS) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, requests)])


def ways(name: str, budgets: dict[str, dict[str, Any]], otherwise: dict[str, Any]) -> list[dict[str, Any]]:
    """Every way in which a method takes a budget."""
    return [budgets[kind] for kind in CARDS[name].budgets] or [otherwise]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", views.RUNNING)
def test_a_full_budget_is_dense_however_it_is_said(name: str, architecture: str, systems: dict[str, Any]) -> None:
    system = systems[architecture]
    dense = logprobs(system)
    for budget in ways(name, FULL, {"theta": 1e9}):
        whole = {"rank": 1.0} if name == "shadowkv" else {}
        with on(system, (name, {**budget, **whole})):
            assert np.abs(logprobs(system) - dense).max() < 1e-4, budget


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", views.RUNNING)
def test_a_batch_of_unlike_prompts_is_as_one_by_one(name: str, architecture: str, systems: dict[str, Any]) -> None:
    system = systems[architecture]
    for budget in ways(name, LESS, {"theta": 0.5}):
        with on(system, (name, {**budget, **FEW.get(name, {})})):
            together = logprobs(system)
            apart = np.concatenate([logprobs(system, [request]) for request in REQUESTS])
        assert np.isfinite(together).all()
        assert np.abs(together - apart).max() < 1e-4, budget


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("cache", ["snapkv", "h2o", "streaming-llm", "mustafar"])
@pytest.mark.parametrize("prefill", ["vertical-slash", "block-topk", "a-shape"])
def test_methods_of_prefill_and_of_the_cache_compose(
    prefill: str, cache: str, architecture: str, systems: dict[str, Any]
) -> None:
    """Each acts in its phase as it does alone, and a batch is as its prompts one by one."""
    system = systems[architecture]
    knobs = {**FEW.get(cache, {}), **({"phase": "decode"} if cache == "streaming-llm" else {})}
    first, last = (prefill, {"sparsity": 0.5}), (cache, {"sparsity": 0.6, **knobs})
    density = {}
    for stack in ((first,), (last,), (first, last)):
        system.counters.reset()
        with on(system, *stack):
            found = logprobs(system)
            for phase in ("prefill", "decode"):
                kept = system.counters.ratio(f"{phase}.attention.kept", f"{phase}.attention.visible")
                density[len(stack), stack[0][0], phase] = kept
            if len(stack) == 2:
                apart = np.concatenate([logprobs(system, [request]) for request in REQUESTS])
                assert np.abs(found - apart).max() < 1e-4
    assert density[2, prefill, "prefill"] == pytest.approx(density[1, prefill, "prefill"], abs=0.02)
    assert density[2, prefill, "decode"] == pytest.approx(density[1, cache, "decode"], abs=0.02)
    assert density[2, prefill, "prefill"] < 0.95  # blocks of short windows are coarse
    if issubclass(get(cache), CacheAdapter):
        assert density[2, prefill, "decode"] < 0.9
