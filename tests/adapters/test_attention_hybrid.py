"""Attention methods where layers have unlike windows, or learned sinks: what is chosen, and what is predicted of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import attention_views as views
import models
import numpy as np
import pytest
import torch
import transformers as hf
from attention_texts import random_ids

from sparsebench.adapters import attached, create
from sparsebench.adapters.attention._rotary import Rotary
from sparsebench.adapters.calibration import Calibration
from sparsebench.cost import Request, dense_cost
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.systems.causal_lm import CausalLM

WINDOWS = (24, None) * 8


REQUESTS = [Scored(random_ids(n, n), 12, prefill) for n, prefill in ((90, 70), (51, 35), (64, 40))]


def logprobs(system: Any, requests: list[Scored] = REQUESTS) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, requests)])


def system_of(config: Any) -> Any:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = hf.AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.random.set_rng_state(state)
    return CausalLM(model, models.tiny_tokenizer(), ref=f"memory:{config.model_type}")


@pytest.fixture(scope="module")
def gemma2() -> Any:
    """Sixteen layers, every other one with a window of 24."""
    system = system_of(hf.Gemma2Config(**{**models.GROUPED, "num_hidden_layers": 16}, head_dim=16, sliding_window=24))
    assert system.shape.windows == WINDOWS
    return system


@pytest.fixture(scope="module")
def gpt_oss() -> Any:
    """Sinks, experts, rotation tables of half the width, windows in some layers."""
    config = hf.GptOssConfig(
        **models.GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=24
    )
    system = system_of(config)
    with torch.no_grad():
        for block in system.blocks:
            block.self_attn.sinks.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return system


# tidal decode


@pytest.mark.parametrize("budget", [{"sparsity": 0.0}, {"tokens": 4096}])
@pytest.mark.parametrize("knobs", [{}, {"dense": 1, "correction": 2}])
def test_tidal_decode_at_a_full_budget_is_dense_whatever_the_windows(
    budget: dict[str, Any], knobs: dict[str, Any], gemma2: Any
) -> None:
    """The layers that choose have a window in one case and none in the other."""
    dense = logprobs(gemma2)
    gemma2.counters.reset()
    with attached(gemma2, [create("tidal-decode", **budget, **knobs)]):
        assert np.abs(logprobs(gemma2) - dense).max() < 1e-4
    assert gemma2.counters.ratio("decode.attention.kept", "decode.attention.visible") == 1


def hybrid_shape(windows: tuple[int | None, ...]) -> Any:
    return replace(views.shape_of(layers=len(windows)), windows=windows)


def hybrid_views(windows: tuple[int | None, ...]) -> list[Any]:
    """Views of the same rows in every layer, each with its own window."""
    return [
        views.make_view([(90, 5), (40, 3)], decode=True, layer=layer, window=window)
        for layer, window in enumerate(windows)
    ]


@pytest.mark.parametrize("windows", [(24, None, 24, None), (None, 24, 24, None)])
@pytest.mark.parametrize("budget", [{"sparsity": 0.6}, {"tokens": 10}])
def test_tidal_decode_cuts_one_order_by_each_layers_window(
    windows: tuple[int | None, ...], budget: dict[str, Any]
) -> None:
    """Layers 0 and 1 choose; what 2 and 3 read are the tokens that layer 1 would have chosen under their windows."""
    layers = hybrid_views(windows)
    policy = views.policy_of("tidal-decode", hybrid_shape(windows), **budget)
    masks = views.masks_of(policy, layers)
    for layer in (2, 3):
        chooser = replace(layers[1], window=windows[layer])
        oracle = views.policy_of("oracle-tokens", hybrid_shape(windows), tokens=1)
        oracle.allowance = policy.allowance
        assert torch.equal(masks[layer], views.masks_of(oracle, [chooser])[0])
        real = layers[layer].positions >= 0
        assert bool((masks[layer].sum(dim=-1) > 0).transpose(1, 2)[real].all()), "no query reads nothing"


def test_scores_outside_the_choosing_layers_window_are_counted_as_predicted(gemma2: Any) -> None:
    ids, prompt = random_ids(120), 80
    chosen = create("tidal-decode", sparsity=0.5, dense=1, correction=2)
    gemma2.counters.reset()
    with attached(gemma2, [chosen]):
        score(gemma2, [Scored(ids, 120 - prompt + 1, prompt)])
    predicted = chosen.adapter.cost(gemma2, Request(prompt, 119 - prompt), chosen.budget).decode
    assert chosen.adapter.choosing(16) == (1, 2)
    # Layer 2 sees 24 keys; for the full layers after it, it scores all.
    further = sum(position + 1 - 24 for position in range(prompt, 119))
    assert predicted.index == 2 * 4 * 16 * further
    assert gemma2.counters.sums["decode.attention.index_flops"] == predicted.index
    plain = create("tidal-decode", sparsity=0.5).adapter
    assert plain.cost(models.tiny_system("llama"), Request(80, 9), chosen.budget).decode.index == 0


def test_tidal_decode_refuses_a_cache_that_dropped_keys(gemma2: Any) -> None:
    with attached(gemma2, [create("tidal-decode", sparsity=0.5)]), torch.inference_mode():
        cache = gemma2.model(torch.tensor([random_ids(40)]), use_cache=True).past_key_values
        with pytest.raises(InputError, match="sliding window"):
            gemma2.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", ["quest", "hip", "tidal-decode"])
def test_the_predicted_share_is_that_of_the_layers_own_windows(name: str, gemma2: Any) -> None:
    """Dense layers are more of the pairs than of the layers, or less: a ratio is not met, and the prediction says so."""
    ids, prompt = random_ids(300), 260
    chosen = create(name, sparsity=0.5, **({"phase": "decode"} if name == "hip" else {}))
    gemma2.counters.reset()
    with attached(gemma2, [chosen]):
        score(gemma2, [Scored(ids, 300 - prompt + 1, prompt)])
    predicted = chosen.adapter.cost(gemma2, Request(prompt, 299 - prompt), chosen.budget).decode
    kept = gemma2.counters.sums["decode.attention.kept"] * gemma2.shape.pair_flops
    assert predicted.attention == pytest.approx(kept, rel=0.03)
    dense = dense_cost(gemma2.shape, Request(prompt, 299 - prompt)).decode
    assert (abs(predicted.attention / dense.attention - 0.5) > 0.02) == (name == "tidal-decode")


# learned sinks


def test_flexprefill_covers_a_share_of_what_keys_receive() -> None:
    """Sinks that take nearly all attention away: without them in the sum, the choice is what it is without sinks."""
    view = views.make_view([(0, 256)], layer=2)
    options = {"coverage": 0.5, "block": 8, "least": 16, "setting": "paper", "tau": 0.1}
    shape = views.shape_of()
    (plain,) = views.masks_of(views.policy_of("flexprefill", shape, **options), [view])
    (none,) = views.masks_of(
        views.policy_of("flexprefill", shape, **options), [replace(view, sinks=torch.full((4,), -60.0))]
    )
    (strong,) = views.masks_of(
        views.policy_of("flexprefill", shape, **options), [replace(view, sinks=torch.full((4,), 9.0))]
    )
    visible = int(view.visible().sum()) * 4
    assert torch.equal(plain, none)
    assert int(plain.sum()) < 0.9 * visible
    assert int(strong.sum()) < 0.9 * visible


@pytest.mark.parametrize("name", views.RUNNING)
def test_every_method_runs_on_a_model_with_sinks(name: str, gpt_oss: Any) -> None:
    """A full budget is dense, and a batch is as its prompts one by one."""
    text = Calibration("random", np.array([random_ids(48, seed) for seed in range(4)]))
    dense = logprobs(gpt_oss)
    whole = {"rank": 1.0} if name == "shadowkv" else {}
    for budget in views.full_budget(name):
        with attached(gpt_oss, [create(name, **budget, **whole)], text):
            assert np.abs(logprobs(gpt_oss) - dense).max() < 1e-4
    with attached(gpt_oss, [create(name, **views.some_budget(name))], text):
        together = logprobs(gpt_oss)
        apart = np.concatenate([logprobs(gpt_oss, [request]) for request in REQUESTS])
    assert np.isfinite(together).all()
    assert np.abs(together - apart).max() < 1e-4


def test_rotations_by_tables_of_half_the_width_are_taken_back(gpt_oss: Any) -> None:
    ids, seen, before = random_ids(30), {}, []

    class Watch:
        def attend(self, view: Any) -> torch.Tensor:
            seen[view.layer] = view.query[0]
            return attend_dense(view)

    handles = [
        block.self_attn.q_proj.register_forward_hook(
            lambda module, args, out: before.append(out.reshape(-1, 4, 16)[:30].transpose(0, 1))
        )
        for block in gpt_oss.blocks
    ]
    with gpt_oss.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(gpt_oss, [Scored([*ids, 0], 1, 31)])
    for handle in handles:
        handle.remove()
    rotary = Rotary(gpt_oss)
    assert not rotary.plain
    for layer, query in seen.items():
        back = rotary.rotate(query, torch.arange(30), layer, back=True)
        assert torch.allclose(back, before[layer], atol=1e-4)
        assert torch.allclose(rotary.rotate(back, torch.arange(30), layer), query, atol=1e-4)


# what an index costs


def test_anchor_attention_compares_no_keys_outside_a_window() -> None:
    method = create("anchor-attention", block=4, step=2).adapter
    shape = views.shape_of()
    pooling = shape.heads * shape.head_dim * 64
    each = 2 * shape.heads * shape.head_dim
    wide, _ = method.index(shape, 0, 64, None)
    assert wide == pooling + each * sum(max(0, block // 2 * 8 - 4) for block in range(16))
    assert method.index(shape, 0, 64, 64)[0] == wide
    narrow, _ = method.index(shape, 0, 64, 12)
    oldest = [max(4, 4 * block + 1 - 12) for block in range(16)]
    assert narrow == pooling + each * sum(max(0, block // 2 * 8 - oldest[block]) for block in range(16))
    assert narrow < wide / 2


def test_what_an_index_keeps_beside_the_cache_is_resident() -> None:
    """Of 100 tokens, the last 24 of them in sight: vectors for each page, part or key."""
    shape = views.shape_of()
    entry = shape.bytes_per_entry
    quest = create("quest", page=8).adapter
    assert quest.index_held(shape, 100, None) == 13 * 2 * 2 * 8 * entry
    assert quest.index_held(shape, 100, 24) == 4 * 2 * 2 * 8 * entry
    lserve = create("lserve", page=8, part=4, streaming=0.25).adapter
    assert lserve.index_held(shape, 100, None) == 0.75 * 25 * 2 * 2 * 8 * entry
    double = create("double-sparsity", factor=4).adapter
    assert double.index_held(shape, 100, None) == 100 * 4 * 2 * entry
    assert double.index_held(shape, 100, 24) == 24 * 4 * 2 * entry
    system = models.tiny_system("llama")
    for name in ("quest", "lserve", "double-sparsity", "oracle-tokens"):
        chosen = create(name, sparsity=0.5)
        request = Request(200, 40, batch=3)
        dense = dense_cost(system.shape, request).decode.bytes_kv_resident
        found = chosen.adapter.cost(system, request, chosen.budget).decode.bytes_kv_resident
        held = 3 * 3 * chosen.adapter.index_held(system.shape, 240, None)
        assert found == dense + held
        assert (held > 0) == (name != "oracle-tokens")


def test_heads_of_a_trained_model_agree_more_than_not() -> None:
    """Predicted bytes are those of one head of a group: the union is nearer to them than to those of all heads."""
    system = models.stories_system()
    text = system.tokenizer("".join(models.STORIES)).input_ids[:300]
    for sparsity in (0.5, 0.8):
        system.counters.reset()
        with attached(system, [create("quest", sparsity=sparsity)]):
            score(system, [Scored(text, 60, 240)])
        sums, shape = system.counters.sums, system.shape
        kept = sums["decode.attention.kept"] * shape.kv_heads / shape.heads
        assert shape.heads == 2 * shape.kv_heads
        assert kept <= sums["decode.attention.union"] < 1.5 * kept
