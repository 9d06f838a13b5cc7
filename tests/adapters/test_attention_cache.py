"""What every method must hold that evicts keys or entries of them, and what each keeps against a plain reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import attention_views as views
import models
import numpy as np
import pytest
import torch
from attention_views import CARDS, LAYERS

from sparsebench.adapters import Prepared, attached, create, get
from sparsebench.adapters.attention._cache import CacheAdapter, StepwiseCache
from sparsebench.adapters.attention._eviction import best
from sparsebench.adapters.attention._rotary import Rotary
from sparsebench.adapters.attention._shadow import low_rank
from sparsebench.adapters.attention.expected_attention import expectation
from sparsebench.adapters.calibration import Calibration
from sparsebench.cost import Request, dense_cost
from sparsebench.engine import flow
from sparsebench.engine.attention import AttentionView, attend_dense
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.lm import SparseLM
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
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


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def on(system, *members):
    text = Calibration("random", np.array([random_ids(32, seed) for seed in range(4)]))
    return attached(system, [create(name, **knobs) for name, knobs in members], text)


REQUESTS = [
    Scored(random_ids(n, n), scored, prefill) for n, scored, prefill in ((70, 20, 55), (41, 9, 30), (100, 30, 70))
]


def logprobs(system, requests=REQUESTS) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, requests)])


@pytest.fixture(scope="module")
def systems():
    made: dict[str, Any] = {}

    def system(name: str) -> Any:
        if name not in made:
            made[name] = models.tiny_system(name)
        return made[name]

    return system


# conformance


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_budget_is_dense(architecture, systems):
    """All methods where heads are grouped, with and without windows; elsewhere one of each kind."""
    system = systems(architecture)
    dense = logprobs(system)
    kinds = ("snapkv", "h2o", "expected-attention", "mustafar", "shadowkv")
    for name in REMEMBERING if architecture in ("llama", "gemma2") else kinds:
        for budget in ({"sparsity": 0.0}, *([{"tokens": 4096}] if "tokens" in CARDS[name].budgets else [])):
            system.counters.reset()
            whole = {"rank": 1.0} if name == "shadowkv" else {}
            with on(system, (name, {**budget, **whole})):
                assert np.abs(logprobs(system) - dense).max() < 1e-4, (name, budget)
            ratio = system.counters.ratio
            assert ratio("decode.attention.kept", "decode.attention.visible") == 1, name
            assert ratio("prefill.attention.kept", "prefill.attention.visible") == 1, name
            if name in ALL:
                assert ratio("decode.kv_bytes_resident", "decode.kv_bytes_resident_dense") == 1, name


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_smaller_budget_changes_decode_and_nothing_before(name, systems):
    system = systems("llama")
    requests = [Scored(random_ids(160), 60, 140)]
    dense = logprobs(system, requests)
    with on(system, (name, {"sparsity": 0.8})):
        found = logprobs(system, requests)
    # The first 40 scored tokens are predicted by prompt tokens.
    assert np.abs(found - dense)[:40].max() < 1e-4
    assert np.abs(found - dense)[41:].max() > 1e-3


@pytest.mark.parametrize("name", CACHE)
def test_density_and_bytes_follow_the_budget(name):
    shape = views.shape_of(layers=2)
    for sparsity in (0.4, 0.7, 0.9):
        policy = policy_of(name, shape, sparsity=sparsity)
        for layer in range(2):
            for view in phases(whole_view([(400, 20), (400, 20)], layer=layer), [(400, 20), (400, 20)]):
                policy.attend(view)
        ratio = policy.system.counters.ratio
        density = ratio("decode.attention.kept", "decode.attention.visible")
        own = 0.0 if name in STEPWISE else sparsity * 10.5 / 410  # decoded keys are all there
        assert density == pytest.approx(1 - sparsity + own, abs=0.012), sparsity
        assert ratio("decode.kv_bytes_resident", "decode.kv_bytes_resident_dense") == pytest.approx(density)
        assert ratio("decode.attention.union", "decode.attention.visible") == pytest.approx(density / 2), (
            "shared by groups"
        )


@pytest.mark.parametrize("name", CACHE)
def test_a_budget_in_tokens_is_what_is_held_of_a_prompt(name):
    policy = policy_of(name, views.shape_of(layers=1), tokens=24)
    mask, decode = reads(policy, whole_view([(200, 5), (90, 5)]), [(200, 5), (90, 5)])
    for row in range(2):
        for query in range(5):
            held = mask[row, :, query].sum(dim=-1).float().mean()
            assert held == (24 if name in STEPWISE else 24 + query + 1)
    assert decode.layer == 0


@pytest.mark.parametrize("name", CACHE)
@pytest.mark.parametrize("window", [None, 24])
def test_no_row_has_a_part_in_another(name, window):
    for layer in range(3):
        whole = whole_view(layer=layer, window=window)
        together, _ = reads(policy_of(name, views.shape_of(window=window, layers=3), **some(name)), whole)
        for row, (prompt, decoded) in enumerate(ROWS):
            own = replace(
                whole,
                **{
                    part: getattr(whole, part)[row : row + 1, :, : prompt + decoded]
                    for part in ("query", "key", "value")
                },
            )
            alone, _ = reads(
                policy_of(name, views.shape_of(window=window, layers=3), **some(name)), own, [(prompt, decoded)]
            )
            assert torch.equal(together[row : row + 1, :, :decoded, : prompt + decoded], alone)
            assert not together[row, :, :, prompt + decoded :].any()
            assert bool(alone.any(dim=-1).all())


@pytest.mark.parametrize("name", CACHE)
def test_the_output_is_that_of_the_mask_and_the_count_is_its_sum(name):
    policy = policy_of(name, views.shape_of(), **some(name))
    whole = whole_view(layer=1)
    mask, decode = reads(policy, whole)
    again = policy_of(name, views.shape_of(), **some(name))
    prefill, decode = phases(whole)
    assert torch.allclose(again.attend(prefill), attend_dense(prefill), atol=1e-5)
    out = again.attend(decode)
    keys, values = (x.repeat_interleave(2, dim=1) for x in (decode.key, decode.value))
    logits = (decode.query @ keys.transpose(-1, -2) * decode.scaling).masked_fill(
        ~mask.repeat_interleave(2, dim=1), -torch.inf
    )
    expected = torch.softmax(logits, dim=-1).nan_to_num() @ values
    real = (decode.positions >= 0)[:, None, :, None]
    assert torch.allclose(out * real, expected * real, atol=1e-5)
    sums = again.system.counters.sums
    assert sums["decode.attention.kept"] == 2 * int(mask.sum())
    assert sums["decode.attention.union"] == int(mask.sum())
    assert sums["decode.kv_bytes_resident"] == int(mask.sum()) * again.shape.key_bytes


@pytest.mark.parametrize("name", REMEMBERING)
def test_many_decoded_queries_are_as_one_after_another(name):
    whole = whole_view([(37, 14)], window=None, layer=1)
    shape = views.shape_of()
    policy, single = policy_of(name, shape, **some(name)), policy_of(name, shape, **some(name))
    prefill, decode = phases(whole, [(37, 14)])
    policy.attend(prefill)
    together = policy.attend(decode)
    prefill, decode = phases(whole, [(37, 14)])
    single.attend(prefill)
    for query in range(14):
        length = 37 + query + 1
        one = replace(
            decode,
            query=decode.query[:, :, query : query + 1],
            key=decode.key[:, :, :length],
            value=decode.value[:, :, :length],
            positions=decode.positions[:, query : query + 1],
            lengths=torch.tensor([length]),
        )
        assert torch.allclose(single.attend(one), together[:, :, query : query + 1], atol=1e-5), query
    assert single.system.counters.sums["decode.attention.kept"] == policy.system.counters.sums["decode.attention.kept"]


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_plain_call_is_as_the_engines_rows(name, systems):
    system = systems("llama")
    ids = random_ids(60)
    prompt = 45
    with on(system, (name, some(name))):
        (expected,) = score(system, [Scored(ids, 60 - prompt, prompt)])
        with torch.inference_mode():
            out = system.model(torch.tensor([ids[:prompt]]), use_cache=True)
            logits = [out.logits[0, -1]]
            for place in range(prompt, 59):
                out = system.model(torch.tensor([[ids[place]]]), past_key_values=out.past_key_values, use_cache=True)
                logits.append(out.logits[0, -1])
    found = torch.log_softmax(torch.stack(logits), dim=-1)[torch.arange(15), torch.tensor(ids[prompt:])]
    assert np.abs(found.numpy() - expected.logprobs).max() < 1e-4


def test_plain_calls_that_cannot_be_followed_are_refused(systems):
    system = systems("llama")
    with on(system, ("knorm", {"sparsity": 0.5})), torch.inference_mode():
        cache = system.model(torch.tensor([random_ids(20)]), use_cache=True).past_key_values
        with pytest.raises(InputError, match="whole prompts"):
            system.model(torch.tensor([random_ids(5)]), past_key_values=cache, use_cache=True)
    windowed = systems("mistral")
    with on(windowed, ("knorm", {"sparsity": 0.5})), torch.inference_mode():
        cache = windowed.model(torch.tensor([random_ids(40)]), use_cache=True).past_key_values
        with pytest.raises(InputError, match="sliding window"):
            windowed.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_questions_on_one_context_are_as_computed_apart(name, architecture, systems):
    """Contexts that are shared, contexts that begin alike, answers that share a question, and a prompt with no prefill."""
    system = systems(architecture)
    context = random_ids(50, 5)
    question = random_ids(20, 6)
    requests = [Scored(context + random_ids(30, seed), 20, 50) for seed in range(3)]
    requests += [Scored(context + question + random_ids(12, seed), 12, 50) for seed in range(3)]
    requests += [Scored(context[:40] + random_ids(25, seed), 8, 52) for seed in range(2)]
    requests += [Scored(random_ids(30, 9), 12, 0), Scored(context, 8, 50)]
    with on(system, (name, some(name))):
        together = logprobs(system, requests)
        apart = np.concatenate([logprobs(system, [request]) for request in requests])
    assert np.abs(together - apart).max() < 1e-4


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("multiple", [1, 64])
def test_generated_text_scores_as_the_greedy_one(name, multiple, systems, monkeypatch):
    """Two requests share a prompt and each its own memory; a third has a question after its context."""
    monkeypatch.setitem(flow.KEYS_AT_A_TIME, "cpu", multiple)
    system = systems("llama")
    ids = [random_ids(50, 7), random_ids(50, 7), random_ids(23, 8), random_ids(40, 9)]
    starts = [49, 49, 22, 25]
    with on(system, (name, some(name))):
        prompts = [Prompt(own, start, (), 12, frozenset()) for own, start in zip(ids, starts, strict=True)]
        generator = Generator(system, prompts)
        generator.run()
        generated = [list(tokens) for tokens in generator.tokens]
        for own, start, tokens in zip(ids, starts, generated, strict=True):
            (result,) = score(system, [Scored(own + tokens, len(tokens), start)])
            assert bool(result.greedy.all())
    assert generated[0] == generated[1]


def test_two_lanes_of_one_prompt_do_not_share_what_they_evict(systems):
    """Texts of one prompt that go different ways: each is what it is when it is generated alone."""
    from sparsebench.engine.generation import Sampling

    system = systems("llama")
    own = random_ids(40, 3)
    prompts = [Prompt(own, 39, (), 16, frozenset(), Sampling(temperature=2.0, seed=seed)) for seed in range(4)]
    with on(system, ("h2o", {"sparsity": 0.7})):
        together = Generator(system, prompts)
        together.run()
        assert len({tuple(tokens) for tokens in together.tokens}) > 1
        for tokens in together.tokens:
            (alone,) = score(system, [Scored(own + tokens, 16, 39)])
            assert np.isfinite(alone.logprobs).all()


@pytest.mark.parametrize("name", ALL)
def test_predicted_cost_is_the_counted_one(name, systems):
    system = systems("llama")
    ids, prompt = random_ids(240), 200
    for budget in ({"sparsity": 0.5}, *([{"tokens": 50}] if name != "mustafar" else [])):
        chosen = create(name, **budget)
        system.counters.reset()
        with on(system, (name, budget)):
            score(system, [Scored(ids, 240 - prompt + 1, prompt)])
        request = Request(prompt, 239 - prompt)
        predicted, dense = chosen.adapter.cost(system, request, chosen.budget), dense_cost(system.shape, request)
        sums, shape = system.counters.sums, system.shape
        assert predicted.decode.attention == pytest.approx(sums["decode.attention.kept"] * shape.pair_flops, rel=0.01)
        assert predicted.decode.bytes_kv_read == pytest.approx(
            sums["decode.attention.union"] * shape.key_bytes, rel=0.01
        )
        assert predicted.prefill.attention == dense.prefill.attention
        assert predicted.prefill.index == pytest.approx(sums["prefill.attention.index_flops"])
        read = predicted.prefill.bytes_kv_read - dense.prefill.bytes_kv_read
        assert read == pytest.approx(sums["prefill.attention.index_bytes"])
        assert predicted.decode.bytes_kv_resident < dense.decode.bytes_kv_resident


@pytest.mark.parametrize("budget", [{"sparsity": 0.5}, {"tokens": 64}])
def test_predicted_cost_of_lserve_is_the_counted_one(budget, systems):
    """Pages of 8 keys, half of the heads streaming: each reads what its rule says, and no more is predicted."""
    system, (ids, prompt) = systems("llama"), (random_ids(440), 400)
    knobs = {**budget, "page": 8, "part": 4, "narrow": 0.25}
    chosen = create("lserve", **knobs)
    system.counters.reset()
    with on(system, ("lserve", knobs)):
        score(system, [Scored(ids, 440 - prompt + 1, prompt)])
    predicted = chosen.adapter.cost(system, Request(prompt, 439 - prompt), chosen.budget)
    sums, shape = system.counters.sums, system.shape
    assert predicted.decode.attention == pytest.approx(sums["decode.attention.kept"] * shape.pair_flops, rel=0.05)
    assert predicted.decode.index == pytest.approx(sums["decode.attention.index_flops"])


@pytest.mark.parametrize("name", ALL)
def test_exit_gives_the_system_back(name, systems):
    system = systems("llama")
    before = (system.policy, system.prefix_invariant, system.decode_from_context_end, system.whole_prompt)
    dense = logprobs(system)
    knobs = {"protocol": "query-aware"} if name != "mustafar" else {}
    with pytest.raises(RuntimeError, match="midway"), on(system, (name, {**some(name), **knobs})):
        assert system.decode_from_context_end
        assert system.whole_prompt == (name != "mustafar")
        assert system.prefix_invariant == (name == "mustafar")
        raise RuntimeError("midway")
    assert (system.policy, system.prefix_invariant, system.decode_from_context_end, system.whole_prompt) == before
    assert np.array_equal(logprobs(system), dense)


def test_prefill_of_a_cache_may_be_sparse_but_not_after_it(systems):
    system = systems("llama")
    requests = [Scored(random_ids(120), 30, 100)]
    slash = ("vertical-slash", {"sparsity": 0.5})
    system.counters.reset()
    with on(system, slash, ("snapkv", {"sparsity": 0.75})):
        both = logprobs(system, requests)
    ratio = system.counters.ratio
    assert ratio("prefill.attention.kept", "prefill.attention.visible") == pytest.approx(0.5, abs=0.03)
    assert ratio("decode.attention.kept", "decode.attention.visible") == pytest.approx(0.32, abs=0.03)
    with on(system, slash):
        assert np.abs(both - logprobs(system, requests)).max() > 1e-3
    with on(system, ("snapkv", {"sparsity": 0.75}), slash), pytest.raises(InputError, match="comes last"):
        logprobs(system, requests)


# protocols


def test_the_protocol_says_where_prefill_ends(systems):
    system = systems("llama")
    lm = SparseLM(system, context_field="context")
    context, question = "Ann has a red hat. Bob has a blue one. ", "Whose hat is red? Answer:"
    request = SimpleNamespace(doc={"context": context}, args=(context + question, {"max_gen_toks": 4, "until": []}))
    length, prefix = len(context + question), len(context)
    for protocol, prefill in (("query-agnostic", prefix), ("query-aware", length - 1)):
        with on(system, ("snapkv", {"sparsity": 0.5, "protocol": protocol})):
            assert lm._prompt(request).prefill == prefill
    assert lm._prompt(request).prefill == length


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_the_question_has_a_part_in_what_is_kept_only_where_it_is_seen(name):
    """With the question in decode, two questions find the same keys of the context; with it in prefill they do not."""
    one, other = whole_view([(60, 10)]), whole_view([(60, 10)])
    other.query[:, :, 60:] = -other.query[:, :, 60:]

    def kept(view, rows):
        policy = policy_of(name, views.shape_of(), sparsity=0.7, **({"queries": 8} if name == "snapkv" else {}))
        return reads(policy, view, rows)[0][0, :, 0, :60]

    assert torch.equal(kept(one, [(60, 10)]), kept(other, [(60, 10)]))
    assert not torch.equal(kept(one, [(69, 1)]), kept(other, [(69, 1)]))


# what each keeps


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


# rotary embeddings


def before_rotation(system, ids) -> dict[int, torch.Tensor]:
    """Queries as the projections of each layer give them, [heads, tokens, head_dim]."""
    found: list[torch.Tensor] = []
    shape = (len(ids), system.config.num_attention_heads, -1)
    handles = [
        block.self_attn.q_proj.register_forward_hook(
            lambda module, args, out: found.append(out[0].reshape(shape).transpose(0, 1))
        )
        for block in system.blocks
    ]
    with torch.no_grad():
        system.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return dict(enumerate(found))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "mistral"])
def test_rotations_are_taken_back(architecture, systems):
    system = systems(architecture)
    ids = random_ids(30)
    expected = before_rotation(system, ids)
    seen: dict[int, torch.Tensor] = {}

    class Watch:
        def attend(self, view):
            seen[view.layer] = view.query[0]
            return attend_dense(view)

    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored([*ids, 0], 1, 31)])
    rotary = Rotary(system)
    for layer, query in seen.items():
        back = rotary.rotate(query, torch.arange(30), layer, back=True)
        assert torch.allclose(back, expected[layer], atol=1e-4)
        assert torch.allclose(rotary.rotate(back, torch.arange(30), layer), query, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rotations_are_known_of_every_architecture(architecture, systems):
    rotary = Rotary(systems(architecture))
    assert not rotary.plain
    assert (rotary.module is None) == (architecture in ("gpt2", "opt"))


def test_an_unknown_rotation_is_refused(systems, monkeypatch):
    monkeypatch.setattr(
        Rotary, "_tables", lambda self, x, positions, layer: (torch.ones(1, 12, 12), torch.zeros(1, 12, 12))
    )
    with pytest.raises(InputError, match="rotary"):
        Rotary(systems("llama"))


def test_tables_that_are_no_cosines_and_sines_are_refused(systems):
    """DeepSeek-V2 has one table of complex numbers."""

    class OneTable(torch.nn.Module):
        def forward(self, x, positions):
            return torch.ones(1, 12, 4)

    rotary = Rotary(systems("llama"))
    rotary.module = OneTable()
    with pytest.raises(InputError, match="no cosines and sines"):
        rotary.rotate(torch.ones(2, 12, 8), torch.arange(12), 0)


def test_the_expectation_is_that_of_sampled_queries():
    generator = torch.Generator().manual_seed(0)
    root = 0.5 * torch.randn(4, 4, generator=generator)
    mean, keys = torch.randn(4, generator=generator), torch.randn(1, 6, 4, generator=generator)
    found = expectation(mean[None], (root @ root.T)[None], keys, 0.5, 1)
    queries = mean + torch.randn(200_000, 4, generator=generator) @ root.T
    sampled = (queries @ keys[0].T * 0.5).exp().mean(dim=0)
    assert torch.allclose(found[0], sampled / sampled.sum(), rtol=0.02)


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
    system = systems("llama")
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


# cards


@pytest.mark.parametrize("name", ALL)
def test_cards_are_complete(name):
    card = CARDS[name]
    assert card.nearest in CARDS
    assert card.phases == ("decode",)
    assert card.summary.endswith(".")
    assert card.prefix_invariant == (name == "mustafar")
    if card.role == "method":
        assert card.deviations and card.paper is not None and card.paper.key


def test_no_two_methods_keep_alike():
    view = whole_view([(80, 6)], layer=1)
    found = {name: reads(policy_of(name, views.shape_of(), **some(name)), view, [(80, 6)])[0] for name in CACHE}
    names = sorted(found)
    assert len(names) >= 9 and LAYERS == 5
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.equal(found[one], found[other]), (one, other)
