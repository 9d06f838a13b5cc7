"""Mustafar, LServe and ShadowKV against plain references."""

from __future__ import annotations

from dataclasses import replace

import attention_views as views
import models
import numpy as np
import pytest
import torch
from attention_caches import Unturned, phases, policy_of, whole_view
from attention_texts import random_ids

from sparsebench.adapters import create
from sparsebench.adapters.attention._rotary import Rotary
from sparsebench.adapters.attention._shadow import low_rank
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.scoring import Scored, score

# mustafar


def test_mustafar_is_the_reference():
    rows = [(40, 6), (12, 9)]
    policy = policy_of("mustafar", views.shape_of(), sparsity=0.75, recent=5)
    whole = whole_view(rows, layer=1)
    prefill, decode = phases(whole, rows)
    assert torch.allclose(policy.attend(prefill), attend_dense(prefill), atol=1e-5)
    policy.system.counters.reset()
    out = policy.attend(decode)
    held = 0.0
    for row, (prompt, decoded) in enumerate(rows):
        for head in range(4):
            for query in range(decoded):
                at = prompt + query
                pairs = []
                for key in range(at + 1):
                    k, v = whole.key[row, head // 2, key].clone(), whole.value[row, head // 2, key].clone()
                    if key <= at - 5:
                        for x in (k, v):
                            x[x.abs().argsort(descending=True)[2:]] = 0
                        held += (4 * 2 + 16 / 8) / 2  # four entries of two bytes, sixteen bits; once for a group of two
                    else:
                        held += 16 * 2 / 2
                    pairs.append((float(k @ whole.query[row, head, at] * whole.scaling), v))
                weights = torch.softmax(torch.tensor([logit for logit, _ in pairs]), dim=0)
                expected = sum(w * v for w, (_, v) in zip(weights, pairs, strict=True))
                assert torch.allclose(out[row, head, query], expected, atol=1e-5)
    sums = policy.system.counters.sums
    assert sums["decode.kv_bytes_resident"] == pytest.approx(held)
    assert sums["decode.attention.kept"] < sums["decode.attention.visible"]


def test_mustafar_knows_sequences_again_that_grow():
    """Steps of rows that leave, change places or are cut back read what they read alone."""
    whole = whole_view([(0, 70)] * 3, layer=1)
    policy = policy_of("mustafar", views.shape_of(), sparsity=0.75, recent=5)
    memories = [[{}], [{}], [{}]]
    steps = [([0, 1, 2], [40, 50, 60]), ([0, 1, 2], [41, 51, 61]), ([2, 0], [62, 42]), ([0], [43]), ([0, 1], [30, 52])]
    for rows, lengths in steps:
        longest = max(lengths)
        of = {
            "query": torch.stack([whole.query[r, :, n - 1 : n] for r, n in zip(rows, lengths, strict=True)]),
            "key": whole.key[rows, :, :longest].clone(),
            "value": whole.value[rows, :, :longest].clone(),
            "positions": torch.tensor(lengths)[:, None] - 1,
            "lengths": torch.tensor(lengths),
            "decode": True,
            "aligned": False,
            "known": None,
        }
        for place, length in enumerate(lengths):
            of["key"][place, :, length:] = 99.0
        policy.system.counters.reset()
        out = policy.attend(replace(whole, **of, states=[memories[row] for row in rows]))
        sums = dict(policy.system.counters.sums)
        alone = policy_of("mustafar", views.shape_of(), sparsity=0.75, recent=5)
        assert torch.equal(out, alone.attend(replace(whole, **of, states=[])))
        assert sums == dict(alone.system.counters.sums)


def test_mustafar_shares_prefixes():
    chosen = create("mustafar", sparsity=0.5)
    assert chosen.adapter.shares_prefixes(chosen.budget)


# lserve


def test_lserve_keeps_a_choice_until_the_next_multiple():
    rows = [(61, 10)]
    knobs = {"tokens": 24, "page": 8, "part": 4, "narrow": 0.25}
    policy = policy_of("lserve", views.shape_of(), **knobs)
    whole = whole_view(rows, layer=1)
    prefill, decode = phases(whole, rows)
    policy.attend(prefill)
    mask = policy.selector.select(decode, policy.allowance).keep(decode, 0) & decode.visible()
    keys = whole.key[0, 1]
    for query in range(10):
        at = 61 + query
        # The first key head streams: a quarter of the others' keys, a third of them at the beginning.
        for head in (0, 1):
            assert mask[0, head, query].nonzero().flatten().tolist() == [0, 1, *range(at - 3, at + 1)]
        chooser = 61 if at < 64 else at // 4 * 4
        for head in (2, 3):
            q = whole.query[0, head, chooser]
            bounds = []
            for page in range(chooser // 8):
                parts = [keys[first : first + 4] for first in (8 * page, 8 * page + 4)]
                bounds.append(max(float(torch.maximum(q * k.amax(0), q * k.amin(0)).sum()) for k in parts))
            pages = {*np.argsort(-np.array(bounds), kind="stable")[:2].tolist(), chooser // 8, at // 8}
            expected = [key for key in range(at + 1) if key // 8 in pages]
            assert mask[0, head, query].nonzero().flatten().tolist() == expected, (query, head)


def test_lserve_meets_a_share_with_streaming_and_other_heads():
    for sparsity in (0.3, 0.5, 0.8):
        policy = policy_of("lserve", views.shape_of(layers=2), sparsity=sparsity, page=8, part=4)
        for layer in range(2):
            for view in phases(whole_view([(400, 80)], layer=layer), [(400, 80)]):
                policy.attend(view)
        density = policy.system.counters.ratio("decode.attention.kept", "decode.attention.visible")
        assert density == pytest.approx(1 - sparsity, abs=0.02)


@pytest.mark.parametrize(
    ("name", "knobs", "first"),
    [("lserve", {"sparsity": 0.5, "narrow": 0.25}, 3), ("streaming-heads", {"tokens": 9}, 1)],
)
def test_heads_that_lose_least_stream(name, knobs, first, systems):
    """Ten keys of a text of forty: of them a third are first ones in LServe's decode, one in 65 in its prefill."""
    system = systems["llama"]
    text = Calibration("random", np.array([random_ids(40, seed) for seed in range(3)]))
    prepared = create(name, **knobs).adapter.prepare(system, text)
    lost: dict[int, torch.Tensor] = {}

    class Watch:
        def attend(self, view):
            weights = torch.zeros(4, 40, 40)
            for row, head, query in np.ndindex(len(view.query), 4, 40):
                logits = view.key[row, head // 2, : query + 1] @ view.query[row, head, query] * view.scaling
                weights[head, query, : query + 1] += torch.softmax(logits, dim=-1)
            at, keys = torch.arange(40)[:, None], torch.arange(40)
            near = (keys < first) | (keys > at - 10 + first)
            lost[view.layer] = lost.get(view.layer, 0) + (weights * ~near).sum(dim=(1, 2)).unflatten(0, (2, 2)).sum(
                dim=1
            )
            return attend_dense(view)

    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored([*ids, 0], 1, 41) for ids in text.ids.tolist()])
    flat = torch.stack([lost[layer] for layer in range(3)]).flatten()
    expected = torch.zeros(6, dtype=torch.bool)
    expected[flat.argsort()[:3]] = True
    assert torch.equal(torch.stack([prepared.state[layer] for layer in range(3)]).flatten(), expected)


# shadowkv


def test_shadowkv_by_hand():
    """Chunks by the softmax of their means, over keys that a factorisation of rank 3 gives, outliers aside."""
    length, rows = 66, [(66, 6)]
    knobs = {"tokens": 40, "chunk": 4, "rank": 3 / 16, "outliers": 2, "local": 1, "setting": "paper"}
    policy = policy_of("shadowkv", views.shape_of(), **knobs)
    whole = whole_view(rows, layer=1)
    prefill, decode = phases(whole, rows)
    policy.attend(prefill)
    policy.system.counters.reset()
    out = policy.attend(decode)
    flat = whole.key[0, :, :length].transpose(0, 1).reshape(length, 16).double().numpy()
    left, sizes, right = np.linalg.svd(flat, full_matrices=False)
    near = ((left[:, :3] * sizes[:3]) @ right[:3]).reshape(length, 2, 8)
    read = 0
    for head in range(2):
        keys, values = whole.key[0, head].double().numpy(), whole.value[0, head].double().numpy()
        means = np.stack([keys[4 * c : 4 * c + 4].mean(axis=0) for c in range(16)])
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        likeness = [min(unit(keys[4 * c + i]) @ unit(means[c]) for i in range(4)) for c in range(16)]
        exact = {*np.argsort(likeness, kind="stable")[:2].tolist(), 15}
        for query in range(6):
            at = length + query
            members = (2 * head, 2 * head + 1)
            share = np.zeros(16)
            for member in members:
                logits = means @ whole.query[0, member, at].double().numpy() * whole.scaling
                weights = np.exp(logits - logits.max())
                share = np.maximum(share, weights / weights.sum())
            always = {*range(64, at + 1), *(4 * c + i for c in exact for i in range(4))}
            room = round((40 - len(always)) / 4)
            order = [c for c in np.argsort(-share, kind="stable").tolist() if c not in exact][:room]
            chosen = sorted(always | {4 * c + i for c in order for i in range(4)})
            read += len(chosen)
            mixed = [keys[k] if k in always else near[k, head] for k in chosen]
            for member in members:
                logits = np.stack(mixed) @ whole.query[0, member, at].double().numpy() * whole.scaling
                weights = np.exp(logits - logits.max())
                expected = weights / weights.sum() @ values[chosen]
                assert np.allclose(out[0, member, query].numpy(), expected, atol=1e-4), (head, query)
    assert policy.system.counters.sums["decode.attention.union"] == read


def test_shadowkv_of_a_prompt_shorter_than_a_chunk_is_dense():
    rows = [(5, 3), (30, 2)]
    policy = policy_of("shadowkv", views.shape_of(), sparsity=0.5, chunk=8)
    whole = whole_view(rows, layer=1)
    prefill, decode = phases(whole, rows)
    policy.attend(prefill)
    assert torch.allclose(policy.attend(decode)[0, :, :3], attend_dense(decode)[0, :, :3], atol=1e-5)


def test_shadowkv_holds_less_than_the_whole_cache():
    policy = policy_of("shadowkv", views.shape_of(layers=1), sparsity=0.5)
    for view in phases(whole_view([(800, 10)]), [(800, 10)]):
        policy.attend(view)
    ratio = policy.system.counters.ratio("decode.kv_bytes_resident", "decode.kv_bytes_resident_dense")
    method, shape = policy.method, policy.shape
    width, whole = 16, (1 + 4) * 8  # one outlying chunk at this length, and four local ones
    entries = method.dimensions(width) * (800 + width) + 100 * width
    expected = 10 * (2 * entries + 2 * 32 * whole) + 2 * 32 * sum(range(1, 11))
    assert ratio == pytest.approx(expected / (2 * 32 * sum(range(801, 811))))
    assert shape.key_bytes == 32 and ratio < 0.35
    density = policy.system.counters.ratio("decode.attention.kept", "decode.attention.visible")
    assert density == pytest.approx(0.5, abs=0.01)


def test_keys_of_a_trained_model_are_nearer_low_rank_before_their_rotation():
    system = models.stories_system()
    found: dict[int, torch.Tensor] = {}

    class Watch:
        def attend(self, view):
            found[view.layer] = view.key[0].float()
            return attend_dense(view)

    text = system.tokenizer("".join(models.STORIES)).input_ids[:200]
    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored([*text, 0], 1, 201)])
    rotary = Rotary(system)
    for layer, keys in found.items():
        turned, plain = (low_rank(keys, r, layer, 8) - keys for r in (rotary, Unturned()))
        assert turned.norm() < plain.norm()
