"""What every method must hold that evicts keys or entries of them, or remembers something else of a sequence."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import attention_views as views
import numpy as np
import pytest
import torch
from attention_caches import (
    ALL,
    ARCHITECTURES,
    CACHE,
    REMEMBERING,
    ROWS,
    STEPWISE,
    logprobs,
    phases,
    policy_of,
    reads,
    some,
    whole_view,
)
from attention_texts import on, plain_logprobs, random_ids
from attention_views import CARDS, LAYERS

from sparsebench.adapters import create
from sparsebench.cost import Request, dense_cost
from sparsebench.engine import flow
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.lm import SparseLM
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_budget_is_dense(architecture, systems):
    """All methods where heads are grouped, with and without windows; elsewhere one of each kind."""
    system = systems[architecture]
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
    system = systems["llama"]
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
    system = systems["llama"]
    ids = random_ids(60)
    prompt = 45
    with on(system, (name, some(name))):
        (expected,) = score(system, [Scored(ids, 60 - prompt, prompt)])
        found = plain_logprobs(system, ids, prompt)
    assert np.abs(found - expected.logprobs).max() < 1e-4


def test_plain_calls_that_cannot_be_followed_are_refused(systems):
    system = systems["llama"]
    with on(system, ("knorm", {"sparsity": 0.5})), torch.inference_mode():
        cache = system.model(torch.tensor([random_ids(20)]), use_cache=True).past_key_values
        with pytest.raises(InputError, match="whole prompts"):
            system.model(torch.tensor([random_ids(5)]), past_key_values=cache, use_cache=True)
    windowed = systems["mistral"]
    with on(windowed, ("knorm", {"sparsity": 0.5})), torch.inference_mode():
        cache = windowed.model(torch.tensor([random_ids(40)]), use_cache=True).past_key_values
        with pytest.raises(InputError, match="sliding window"):
            windowed.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_questions_on_one_context_are_as_computed_apart(name, architecture, systems):
    """Contexts that are shared, contexts that begin alike, answers that share a question, and a prompt with no prefill."""
    system = systems[architecture]
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
    system = systems["llama"]
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

    system = systems["llama"]
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
    system = systems["llama"]
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
    system, (ids, prompt) = systems["llama"], (random_ids(440), 400)
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
    system = systems["llama"]
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
    system = systems["llama"]
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
    system = systems["llama"]
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
