"""The arithmetic of activation methods: scores, rules and quantiles, against hand-made cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ARCHITECTURES, tiny_system

from sparsebench.adapters import get
from sparsebench.adapters.activation._distribution import Distribution
from sparsebench.adapters.activation._mlp import mlps
from sparsebench.adapters.activation.base import Site, dropped
from sparsebench.adapters.activation.random_activations import ORDERS

NOWHERE = torch.zeros(1, dtype=torch.long)


def site(weight: torch.Tensor, name: str = "block.q_proj") -> Site:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    return Site(name, linear, weight, weight.shape[1], weight.shape[0], 0)


def drop(method: str, x: list[float], weight: torch.Tensor, sparsity: float, **knobs: Any) -> list[bool]:
    adapter: Any = get(method).configure(knobs)
    state = adapter.state_of(site(weight, knobs.pop("name", "block.q_proj")))
    return adapter.drop(torch.tensor([x]), state, NOWHERE, sparsity, -1.0)[0].tolist()


def test_wina_differs_from_teal() -> None:
    # Column norms 5, 1, 1: TEAL drops the smallest |x|, WINA the smallest of 5, 2, 3.
    weight = torch.tensor([[3.0, 1, 0], [4, 0, 1]])
    x = [1.0, -2, 3]
    assert drop("teal", x, weight, 1 / 3, rule="topk") == [True, False, False]
    assert drop("wina", x, weight, 1 / 3) == [False, True, False]
    # The released code takes norms of keys and gates only.
    assert drop("wina", x, weight, 1 / 3, norms="released") == [True, False, False]
    adapter: Any = get("wina").configure({"norms": "released"})
    assert adapter.state_of(site(weight, "layers.0.k_proj")).tolist() == [5.0, 1.0, 1.0]


def test_threshold_cuts_at_the_score_and_topk_counts() -> None:
    x = torch.tensor([[0.1, -0.2, 0.3, -0.4], [2.0, 0.2, -3.0, 4.0]])
    threshold: Any = get("teal").configure({"rule": "threshold"})
    assert threshold.drop(x, None, NOWHERE, 0.5, 0.2).int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    topk: Any = get("teal").configure({"rule": "topk"})
    assert topk.drop(x, None, NOWHERE, 0.5, 9.0).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    ties = topk.drop(torch.ones(1, 5), None, NOWHERE, 0.4, 9.0)
    assert ties.int().tolist() == [[1, 1, 0, 0, 0]]


def test_dropped_rounds_to_the_nearest() -> None:
    assert [dropped(s, 10) for s in (0, 0.04, 0.05, 0.25, 0.99)] == [0, 0, 1, 3, 10]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_quantiles_of_bfloat16_are_exact(size: int, share: float, seed: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16().abs()
    distribution = Distribution()
    for part in x.split(100):
        distribution.add(part)
    cut = distribution.threshold(share)
    below = int((x <= cut).sum())
    # No other cut between scores comes nearer to the share.
    reachable = [0, *(int((x <= value).sum()) for value in x.unique())]
    assert abs(below - share * size) == min(abs(n - share * size) for n in reachable)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.sampled_from(["normal", "uniform", "heavy"]), st.integers(0, 2**31))
def test_quantiles_of_float32_are_near(share: float, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(20_000, generator=generator) if kind == "uniform" else torch.randn(20_000, generator=generator).abs()
    x = x**3 if kind == "heavy" else x
    distribution = Distribution()
    distribution.add(x)
    assert float((x <= distribution.threshold(share)).float().mean()) == pytest.approx(share, abs=1e-3)


def test_quantiles_grow_with_the_share() -> None:
    distribution = Distribution()
    distribution.add(torch.randn(1000).abs())
    cuts = [distribution.threshold(s / 20) for s in range(20)]
    assert cuts == sorted(cuts)
    assert cuts[0] == -1.0  # at no sparsity not even zeros go


def test_zeros_of_relu_are_one_bin() -> None:
    distribution = Distribution()
    distribution.add(torch.relu(torch.tensor([-1.0, -2, -3, 4, 5]).bfloat16()))
    assert distribution.threshold(0.4) == 0.0
    assert distribution.threshold(0.6) == 0.0
    assert distribution.threshold(0.8) == 4.0


def test_random_orders() -> None:
    adapter: Any = get("random-activations")()
    weight = torch.zeros(5, 40)
    state = adapter.state_of(site(weight))
    assert torch.equal(state.sort(dim=1).values, torch.arange(40, dtype=torch.int16).expand(ORDERS, -1))
    assert torch.equal(state, adapter.state_of(site(weight)))
    assert not torch.equal(state, adapter.state_of(site(weight, "block.k_proj")))
    assert not torch.equal(state, get("random-activations").configure({"seed": 1}).state_of(site(weight)))  # type: ignore[attr-defined]
    positions = torch.arange(500)
    x = torch.randn(500, 40)
    masks = [adapter.drop(x, state, positions, s, -1.0) for s in (0.1, 0.5, 0.9)]
    assert [set(m.sum(dim=1).tolist()) for m in masks] == [{4}, {20}, {36}]
    assert not bool((masks[0] & ~masks[1]).any())
    assert not bool((masks[1] & ~masks[2]).any())
    # Every channel goes about equally often, and neighbours differ.
    assert masks[1].float().mean(dim=0).sub(0.5).abs().max() < 0.25
    assert sum(torch.equal(a, b) for a, b in zip(masks[1], masks[1][1:], strict=False)) < 30


# Neurons, and multiply-adds of the projection whose outputs the activations multiply: 48 where the MLP is gated.
GATES = {"gpt2": (192, 0), "gpt_neox": (96, 0), "opt": (96, 0)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mlps_are_found(name: str) -> None:
    system = tiny_system(name)
    found = mlps(system)
    assert len(found) == 3
    assert [(mlp.neurons, mlp.gated) for mlp in found] == [GATES.get(name, (96, 48))] * 3
    seen: list[torch.Size] = []
    for mlp in found:
        mlp.activation.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        system.model(torch.arange(7)[None])
    assert len(seen) == 3
    assert {shape[-1] for shape in seen} == {found[0].neurons}
    assert [mlp.down.block for mlp in found] == [0, 1, 2]
    assert all(mlp.down.weight.shape[0] == 48 for mlp in found)
