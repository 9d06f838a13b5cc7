"""What each method keeps of the keys, against a plain reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import attention_views as views
import numpy as np
import pytest
import torch
from attention_caches import STEPWISE, phases, policy_of, reads, whole_view

from sparsebench.adapters import create
from sparsebench.adapters.attention._eviction import best
from sparsebench.cost import Request
from sparsebench.engine.attention import AttentionView
from sparsebench.errors import InputError


def naive_weights(view: AttentionView, head: int, query: int) -> np.ndarray:
    """Weights of one query over all keys, zero where it does not see."""
    at, length = query, view.key.shape[2]
    low = 0 if view.window is None else max(0, at + 1 - view.window)
    keys = view.key[0, head // view.group].double().numpy()
    logits = keys[low : at + 1] @ view.query[0, head, query].double().numpy() * view.scaling
    weights = np.zeros(length)
    weights[low : at + 1] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return weights


def naive_scores(name: str, view: AttentionView, queries: int, kernel: int) -> np.ndarray:
    """What the keys of a prompt are worth, [kv_heads, keys], head by head and key by key."""
    length, kv_heads, group = view.query.shape[2], view.key.shape[1], view.group
    keys, values = view.key[0].double().numpy(), view.value[0].double().numpy()
    found = np.zeros((kv_heads, length))
    for head in range(kv_heads):
        own = range(head * group, (head + 1) * group)
        if name == "knorm":
            found[head] = [-np.sqrt((k * k).sum()) for k in keys[head]]
        elif name == "keydiff":
            unit = keys[head] / np.linalg.norm(keys[head], axis=1, keepdims=True)
            mean = unit.mean(axis=0)
            found[head] = -(unit @ mean) / np.linalg.norm(mean)
        elif name in ("snapkv", "ada-snapkv", "pyramidkv"):
            for member in own:
                mean = np.mean([naive_weights(view, member, q) for q in range(length - queries, length)], axis=0)
                before = mean[: length - queries]
                for key in range(length - queries):
                    near = [before[j] for j in range(key - kernel // 2, key + kernel // 2 + 1) if 0 <= j < len(before)]
                    found[head, key] += sum(near) / kernel / group
                found[head, length - queries :] += mean[length - queries :] / group
        elif name == "expected-attention":
            for member in own:
                q = view.query[0, member, 4:].double().numpy()
                mean, cov = q.mean(axis=0), np.cov(q.T, bias=True)
                logits = [k @ mean * view.scaling + k @ cov @ k * view.scaling**2 / 2 for k in keys[head, 4:]]
                share = np.exp(logits - np.max(logits))
                found[head, 4:] += share / share.sum() / group
            found[head, 4:] *= np.linalg.norm(values[head, 4:], axis=1)
            found[head, :4] = np.inf
    return found


@pytest.mark.parametrize("name", ["knorm", "keydiff", "snapkv", "expected-attention"])
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_kept_keys_are_those_of_the_reference(name, window, sparsity):
    length, queries = 64, 6
    whole = whole_view([(length, 1)], window=window, layer=2)
    knobs = {"queries": queries} if name == "snapkv" else {}
    mask, _ = reads(policy_of(name, views.shape_of(window=window), sparsity=sparsity, **knobs), whole, [(length, 1)])
    prefill, _ = phases(whole, [(length, 1)])
    worth = naive_scores(name, prefill, queries, 5)
    low = 0 if window is None else length - window + 1
    count = int((1 - sparsity) * (length - low) + 1e-9)
    forced = min(queries, -(-count // 2)) if name == "snapkv" else 0
    for head in range(2):
        score = worth[head].copy()
        score[length - forced :] = np.inf
        score[:low] = -np.inf
        expected = sorted(np.argsort(-score, kind="stable")[:count].tolist())
        assert mask[0, head, 0, :length].nonzero().flatten().tolist() == expected
        assert bool(mask[0, head, 0, length])


def test_ada_snapkv_lets_heads_compete():
    length, queries, count = 64, 6, 20
    whole = whole_view([(length, 1)], layer=2)
    whole.query[:, :2] *= 3  # heads of the first group attend sharply, those of the second widely
    whole.query[:, 2:] *= 0.2
    knobs = {"queries": queries, "tokens": count, "safe": 0.5}
    mask, _ = reads(policy_of("ada-snapkv", views.shape_of(), **knobs), whole, [(length, 1)])
    prefill, _ = phases(whole, [(length, 1)])
    worth = naive_scores("ada-snapkv", prefill, queries, 5)
    kept = np.zeros((2, length), dtype=bool)
    for head in range(2):
        ranked = worth[head].copy()
        ranked[length - queries :] = np.inf
        kept[head, np.argsort(-ranked, kind="stable")[:10]] = True
    rest = np.where(kept, np.inf, worth).flatten()
    flat = np.zeros(2 * length, dtype=bool)
    flat[np.argsort(-rest, kind="stable")[: 2 * count]] = True
    assert np.array_equal(mask[0, :, 0, :length].numpy(), flat.reshape(2, length))
    sizes = flat.reshape(2, length).sum(axis=1)
    assert sizes.sum() == 2 * count and sizes.min() >= 10 and sizes[0] != sizes[1]


def test_pyramidkv_falls_linearly_and_keeps_the_mean():
    method = create("pyramidkv", sparsity=0.5).adapter
    budgets = [method.share_of_layer(500, 1000, layer, 30) for layer in range(30)]
    assert sum(budgets) == 30 * 500
    free = 500 - 64
    assert budgets[0] == pytest.approx(64 + 2 * free - free / 20, abs=16)
    assert budgets[-1] == pytest.approx(64 + free / 20, abs=16)
    assert all(a > b for a, b in pairwise(budgets))
    assert all(abs((a - b) - (2 * free - 2 * free / 20) / 29) <= 2 for a, b in pairwise(budgets))
    wide = [method.share_of_layer(800, 1000, layer, 30) for layer in range(30)]
    assert max(wide) <= 1000 and sum(wide) == 30 * 800, "the first layers are whole, the others have the rest"
    assert [method.share_of_layer(1000, 1000, layer, 30) for layer in range(30)] == [1000] * 30


@pytest.mark.parametrize("windows", [(24, None) * 3, (24, 24, 24, 24, 24, None), (None, None, None, 24, 24, 24)])
def test_pyramidkv_keeps_the_mean_among_layers_of_each_window(windows):
    shape = replace(views.shape_of(layers=len(windows)), windows=windows)
    policy = policy_of("pyramidkv", shape, sparsity=0.5, queries=4)
    kept: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        prefill, decode = phases(whole_view([(200, 1)], layer=layer, window=window), [(200, 1)])
        policy.attend(prefill)
        kept.setdefault(window, []).append(int(policy.selector.stack(decode).keys[0, 0].sum()))
    for window, counts in kept.items():
        assert sum(counts) / len(counts) == (100 if window is None else 11)
        assert counts == sorted(counts, reverse=True)
    chosen = create("pyramidkv", sparsity=0.5, queries=4)
    predicted = chosen.adapter.cost(SimpleNamespace(shape=shape), Request(200, 1), chosen.budget).decode
    held = sum(map(sum, kept.values())) + len(windows)  # and the decoded key in each layer
    assert predicted.bytes_kv_read == pytest.approx(held * shape.kv_heads * shape.key_bytes)


def test_random_eviction_depends_on_seed_layer_and_head_only():
    masks = {}
    for seed in (0, 1):
        for layer in (0, 1):
            policy = policy_of("random-eviction", views.shape_of(), sparsity=0.5, seed=seed)
            masks[seed, layer] = reads(policy, whole_view([(40, 1)], layer=layer, seed=7), [(40, 1)])[0][0, :, 0, :40]
    assert all(int(mask.sum()) == 40 for mask in masks.values())
    assert not torch.equal(masks[0, 0], masks[1, 0]) and not torch.equal(masks[0, 0], masks[0, 1])
    assert not torch.equal(masks[0, 0][0], masks[0, 0][1])
    again = policy_of("random-eviction", views.shape_of(), sparsity=0.5)
    assert torch.equal(reads(again, whole_view([(40, 1)], seed=3), [(40, 1)])[0][0, :, 0, :40], masks[0, 0])


def naive_steps(name: str, view: AttentionView, prompt: int, budget) -> list[list[set[int]]]:
    """Which keys each decoded query reads, head by head: a cache as a set from which one key after another goes."""
    length, kv_heads, group = view.key.shape[2], view.key.shape[1], view.group
    heads = range(view.query.shape[1])
    worth = np.zeros((kv_heads, length))
    if name == "h2o":
        for query in range(prompt):
            for head in heads:
                worth[head // group] += naive_weights(view, head, query)
    else:
        worth[:] = np.mean([naive_weights(view, head, prompt - 1) for head in heads], axis=0)
    caches = [set(range(prompt)) for _ in range(kv_heads)]
    found = []
    for at in range(prompt, length):
        low = 0 if view.window is None else max(0, at + 1 - view.window)
        room = budget(at + 1 - low) - 1
        recent = {*range(at - room // 2, at)} if name == "h2o" else set()
        for head in range(kv_heads):
            caches[head] = {key for key in caches[head] if key >= low}
            while len(caches[head]) > room:
                rest = caches[head] - recent
                caches[head].remove(min(rest, key=lambda key: (worth[head, key], -key)))
            caches[head].add(at)
        found.append([set(cache) for cache in caches])
        weights = np.zeros((len(heads), length))
        for head in heads:
            own = sorted(caches[head // group])
            logits = view.key[0, head // group, own].double().numpy() @ view.query[0, head, at].double().numpy()
            shares = np.exp(logits * view.scaling - (logits * view.scaling).max())
            weights[head, own] = shares / shares.sum()
        if name == "h2o":
            worth += weights.reshape(kv_heads, group, length).sum(axis=1)
        else:
            worth[:] = weights.mean(axis=0)
    return found


@pytest.mark.parametrize("name", STEPWISE)
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("budget", [{"tokens": 12}, {"sparsity": 0.6}])
def test_step_by_step_eviction_is_the_reference(name, window, budget):
    rows = [(40, 25)]
    whole = whole_view(rows, window=window, layer=3)
    mask, _ = reads(policy_of(name, views.shape_of(window=window), **budget), whole, rows)
    size = (lambda seen: 12) if "tokens" in budget else (lambda seen: max(1, int(0.4 * seen + 1e-9)))
    for query, caches in enumerate(naive_steps(name, whole, 40, size)):
        for head, cache in enumerate(caches):
            assert set(mask[0, head, query].nonzero().flatten().tolist()) == cache, (query, head)


def test_a_text_that_is_taken_back_is_refused():
    policy = policy_of("h2o", views.shape_of(), tokens=10)
    prefill, decode = phases(whole_view([(30, 8)]), [(30, 8)])
    policy.attend(prefill)
    policy.attend(decode)
    again = replace(decode, query=decode.query[:, :, 3:], positions=decode.positions[:, 3:])
    with pytest.raises(InputError, match="went back"):
        policy.attend(again)


def test_what_was_evicted_never_comes_back():
    for name in STEPWISE:
        mask, _ = reads(policy_of(name, views.shape_of(), tokens=10), whole_view([(30, 40)]), [(30, 40)])
        gone = torch.zeros_like(mask[0, :, 0])
        for query in range(40):
            now = mask[0, :, query]
            assert not (now & gone).any()
            seen = torch.arange(70) <= 30 + query
            gone |= seen & ~now


def test_best_takes_the_first_of_equals_and_no_more_than_there_are():
    score = torch.tensor([[1.0, torch.inf, torch.inf, 0.0], [-torch.inf, 5, 5, 5]])
    reach = torch.tensor([[True, False, True, True]])
    assert best(score, reach, 2).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert best(score, reach, 9).tolist() == [[True, False, True, True]] * 2
    assert not best(score, reach, 0).any()
