"""What every attention method must hold, with no word about any of them in particular."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import attention_views as views
import models
import numpy as np
import pytest
import torch
from attention_texts import calibration, on, plain_logprobs, random_ids
from attention_views import CARDS, LAYERS

from sparsebench.adapters import Prepared, create, get
from sparsebench.adapters.attention import _executor
from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.cost import Request, dense_cost
from sparsebench.engine import flow
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.scoring import Scored, score

METHODS = views.BY_SELECTION
RATIO = [name for name in METHODS if "sparsity" in CARDS[name].budgets]
ROWS = [(0, 70), (0, 33), (0, 1), (0, 96)]
DECODED = [(40, 9), (3, 4), (0, 2), (87, 7)]


def phases_of(name: str) -> tuple[str, ...]:
    return CARDS[name].phases


REQUESTS = [
    Scored(random_ids(n, n), scored, prefill) for n, scored, prefill in ((70, 20, 55), (41, 9, 41), (100, 30, 70))
]


def logprobs(system, requests=REQUESTS) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, requests)])


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, "llama") for name in METHODS]
    + [(name, "gemma2") for name in METHODS]
    + [(name, other) for name in ("vertical-slash", "quest") for other in ("gemma3", "gpt2")],
)
def test_full_budget_is_dense(name, architecture, systems):
    system = systems[architecture]
    dense = logprobs(system)
    for budget in views.full_budget(name):
        system.counters.reset()
        with on(system, (name, budget)):
            assert np.abs(logprobs(system) - dense).max() < 1e-4, budget
        for phase in phases_of(name):
            assert system.counters.ratio(f"{phase}.attention.kept", f"{phase}.attention.visible") == 1
            assert system.counters.ratio(f"{phase}.attention.tiles", f"{phase}.attention.visible") == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_smaller_budget_changes_the_result(name, systems):
    requests = [Scored(random_ids(260), 40, 240)]
    dense = logprobs(systems["llama"], requests)
    with on(systems["llama"], (name, views.some_budget(name))):
        assert np.abs(logprobs(systems["llama"], requests) - dense).max() > 1e-3


@pytest.mark.parametrize("name", RATIO)
def test_density_meets_the_target_and_rises_with_the_budget(name):
    """Over all layers, the dense first ones included, as far as they leave room."""
    layers = 16 if create(name).adapter.dense_layers(16) else 2
    shape = views.shape_of(layers=layers)
    for phase in phases_of(name):
        decode = phase == "decode"
        before = 2.0
        for sparsity in (0.0, 0.4, 0.7):
            policy = views.policy_of(name, shape, sparsity=sparsity)
            for layer in range(layers):
                policy.attend(views.make_view([(250, 40)] if decode else [(0, 300)], layer=layer, decode=decode))
            density = policy.system.counters.ratio(f"{phase}.attention.kept", f"{phase}.attention.visible")
            assert density == pytest.approx(1 - sparsity, abs=0.01), (phase, sparsity)
            assert density < before
            before = density


@pytest.mark.parametrize("name", [name for name in METHODS if CARDS[name].budgets == ("coverage",)])
def test_density_rises_with_coverage(name):
    shape = views.shape_of()
    densities = []
    for coverage in (0.3, 0.6, 0.9, 1.0):
        policy = views.policy_of(name, shape, coverage=coverage)
        for view in views.views_of([(0, 300), (0, 222)]):
            policy.attend(view)
        densities.append(policy.system.counters.ratio("prefill.attention.kept", "prefill.attention.visible"))
    assert densities == sorted(densities)
    assert densities[0] < 0.9
    assert densities[-1] == 1


@pytest.mark.parametrize("name", [n for n in METHODS if "tokens" in CARDS[n].budgets and n != "streaming-heads"])
def test_a_budget_in_tokens_is_a_bound(name):
    """No query reads more than the budget and one unit of the method, but for those that a method leaves dense."""
    method = create(name, tokens=64).adapter
    unit = getattr(method, "page", getattr(method, "block", 1))
    for phase in phases_of(name):
        at = [(200, 30), (90, 9)] if phase == "decode" else [(0, 230), (0, 99)]
        knobs = {"last": 0} if name == "tri-shape" else {}
        policy = views.policy_of(name, views.shape_of(), tokens=64, **knobs)
        for mask in views.masks_of(policy, views.views_of(at, decode=phase == "decode"))[2:]:
            assert int(mask.sum(dim=-1).max()) <= 64 + unit - 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("window", [None, 24])
def test_selection_depends_on_neither_padding_nor_batch(name, window):
    for phase in phases_of(name):
        rows = DECODED if phase == "decode" else ROWS
        batch = views.views_of(rows, decode=phase == "decode", window=window)
        shape, knobs = views.shape_of(window=window), views.some_budget(name)
        together = views.masks_of(views.policy_of(name, shape, **knobs), batch)
        for row, (start, count) in enumerate(rows):
            own = views.masks_of(views.policy_of(name, shape, **knobs), [views.alone(view, row) for view in batch])
            for padded, mask in zip(together, own, strict=True):
                assert torch.equal(padded[row : row + 1, :, :count, : start + count], mask)
                assert not padded[row, :, count:].any()
                assert not padded[row, :, :, start + count :].any()
                assert bool(mask.any(dim=-1).all()), "every query reads something"


@pytest.mark.parametrize("name", METHODS)
def test_padding_on_the_left_is_as_good(name):
    """Plain calls of a model give rows whose first queries are padding."""
    for phase in phases_of(name):
        decode = phase == "decode"
        whole = views.views_of([(40, 6)] if decode else [(0, 50)], decode=decode)
        pad = 3
        left = [
            replace(
                view,
                query=torch.cat([view.query[:, :, :pad] * 7, view.query], dim=2),
                positions=torch.cat([torch.full((1, pad), -1), view.positions], dim=1),
            )
            for view in whole
        ]
        shape, knobs = views.shape_of(), views.some_budget(name)
        right = views.masks_of(views.policy_of(name, shape, **knobs), whole)
        for a, b in zip(right, views.masks_of(views.policy_of(name, shape, **knobs), left), strict=True):
            assert torch.equal(a, b[:, :, pad:])
            assert not b[:, :, :pad].any()


@pytest.mark.parametrize("name", [name for name in METHODS if "decode" in CARDS[name].phases])
@pytest.mark.parametrize("window", [None, 24])
def test_many_decoded_queries_are_chosen_for_one_by_one(name, window):
    many = views.views_of([(37, 20)], decode=True, window=window)
    shape, knobs = views.shape_of(window=window), views.some_budget(name)
    together = views.masks_of(views.policy_of(name, shape, **knobs), many)
    for query in range(20):
        length = 37 + query + 1
        one = [
            replace(
                view,
                query=view.query[:, :, query : query + 1],
                key=view.key[:, :, :length],
                value=view.value[:, :, :length],
                positions=view.positions[:, query : query + 1],
                lengths=torch.tensor([length]),
            )
            for view in many
        ]
        for whole, mask in zip(together, views.masks_of(views.policy_of(name, shape, **knobs), one), strict=True):
            assert torch.equal(whole[:, :, query : query + 1, :length], mask)


@pytest.mark.parametrize("name", METHODS)
def test_grouped_heads_are_as_repeated_ones(name):
    grouped, repeated = views.shape_of(), views.shape_of(kv_heads=4)
    for phase in phases_of(name):
        few = views.views_of(DECODED if phase == "decode" else ROWS, decode=phase == "decode")
        many = [
            replace(view, key=view.key.repeat_interleave(2, dim=1), value=view.value.repeat_interleave(2, dim=1))
            for view in few
        ]
        a = views.policy_of(name, grouped, **views.some_budget(name))
        b = views.policy_of(name, repeated, **views.some_budget(name))
        for one, other in zip(views.masks_of(a, few), views.masks_of(b, many), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(few, many, strict=True):
            real = (one.positions >= 0)[:, None, :, None]
            assert torch.allclose(a.attend(one) * real, b.attend(other) * real, atol=1e-5)
        kept, union = (a.system.counters.sums[f"{phase}.attention.{what}"] for what in ("kept", "union"))
        assert (
            kept
            == b.system.counters.sums[f"{phase}.attention.kept"]
            == b.system.counters.sums[f"{phase}.attention.union"]
        )
        assert kept / 2 <= union <= kept


@pytest.mark.parametrize("name", METHODS)
def test_the_output_is_that_of_the_mask_and_the_count_is_its_sum(name):
    for phase in phases_of(name):
        rows = DECODED if phase == "decode" else ROWS
        policy = views.policy_of(name, views.shape_of(), **views.some_budget(name))
        again = views.policy_of(name, views.shape_of(), **views.some_budget(name))
        kept = union = visible = 0
        for view in views.views_of(rows, decode=phase == "decode"):
            (mask,) = views.masks_of(again, [view])
            keys, values = (x.repeat_interleave(2, dim=1) for x in (view.key, view.value))
            logits = (view.query @ keys.transpose(-1, -2) * view.scaling).masked_fill(~mask, -torch.inf)
            expected = torch.softmax(logits, dim=-1).nan_to_num() @ values
            real = (view.positions >= 0)[:, None, :, None]
            assert torch.allclose(policy.attend(view) * real, expected * real, atol=1e-5)
            kept += int(mask.sum())
            union += int(mask.unflatten(1, (2, 2)).any(dim=2).sum())
            visible += 4 * int(view.visible().sum())
        sums = policy.system.counters.sums
        assert sums[f"{phase}.attention.kept"] == kept
        assert sums[f"{phase}.attention.union"] == union
        assert sums[f"{phase}.attention.visible"] == visible
        assert kept <= sums[f"{phase}.attention.tiles"] <= visible


@pytest.mark.parametrize("name", METHODS)
def test_slices_change_nothing(name, monkeypatch):
    results = []
    for elements in (_executor.MASK_ELEMENTS["cpu"], 1):
        monkeypatch.setitem(_executor.MASK_ELEMENTS, "cpu", elements)
        policy = views.policy_of(name, views.shape_of(), **views.some_budget(name))
        for phase in phases_of(name):
            for view in views.views_of(
                [(0, 200), (0, 131)] if phase == "prefill" else DECODED, decode=phase == "decode"
            ):
                real = (view.positions >= 0)[:, None, :, None]
                out = policy.attend(view) * real
        results.append((out, dict(policy.system.counters.sums)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("name", METHODS)
def test_exit_gives_the_system_back(name, systems):
    system = systems["llama"]
    before = (system.policy, system.prefix_invariant, system.decode_from_context_end, system.flow)
    implementation = system.model.config._attn_implementation
    dense = logprobs(system)
    with pytest.raises(RuntimeError, match="midway"), on(system, (name, views.some_budget(name))):
        assert system.policy is not None
        assert system.decode_from_context_end == ("decode" in phases_of(name))
        score(system, REQUESTS[:1])
        raise RuntimeError("midway")
    assert (system.policy, system.prefix_invariant, system.decode_from_context_end, system.flow) == before
    assert system.model.config._attn_implementation == implementation
    assert np.array_equal(logprobs(system), dense)


@pytest.mark.parametrize("name", METHODS)
def test_a_plain_call_is_as_the_engines_rows(name, systems):
    system = systems["llama"]
    ids = random_ids(60)
    prompt = 45
    with on(system, (name, views.some_budget(name))):
        (expected,) = score(system, [Scored(ids, 60 - prompt, prompt)])
        found = plain_logprobs(system, ids, prompt)
    assert np.abs(found - expected.logprobs).max() < 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_a_padded_plain_batch_is_as_its_sequences(name, systems):
    system = systems["llama"]
    ids = [random_ids(50, 1), random_ids(31, 2)]
    padded = torch.tensor([ids[0], [256] * 19 + ids[1]])
    mask = torch.tensor([[1] * 50, [0] * 19 + [1] * 31])
    with on(system, (name, views.some_budget(name))), torch.inference_mode():
        together = system.model(padded, attention_mask=mask).logits
        for row, own in enumerate(ids):
            alone = system.model(torch.tensor([own])).logits[0]
            assert (together[row, -len(own) :] - alone).abs().max() < 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_shared_prefixes_are_as_computed_apart(name, systems):
    """Where a method is not prefix invariant the engine shares nothing; either way each has its own result."""
    system = systems["llama"]
    start = random_ids(40, 5)
    requests = [Scored(start + random_ids(20, seed), 8, 56) for seed in range(3)]
    for budget in (views.some_budget(name), *([{"tokens": 24}] if "tokens" in CARDS[name].budgets else [])):
        with on(system, (name, budget)):
            together = logprobs(system, requests)
            apart = np.concatenate([logprobs(system, [request]) for request in requests])
        assert np.abs(together - apart).max() < 1e-4


@pytest.mark.parametrize("name", [name for name in METHODS if "decode" in CARDS[name].phases])
@pytest.mark.parametrize("multiple", [1, 64])
def test_generated_text_scores_as_the_greedy_one(name, multiple, systems, monkeypatch):
    """Decoding step by step in lanes, padded or not, and scoring all at once are the same choice of keys."""
    monkeypatch.setitem(flow.KEYS_AT_A_TIME, "cpu", multiple)
    system = systems["llama"]
    ids = [random_ids(50, 7), random_ids(50, 7), random_ids(23, 8)]  # two requests share one prompt
    with on(system, (name, views.some_budget(name))):
        prompts = [Prompt(own, len(own) - 1, (), 12, frozenset()) for own in ids]
        generator = Generator(system, prompts)
        generator.run()
        generated = [list(tokens) for tokens in generator.tokens]
        for own, tokens in zip(ids, generated, strict=True):
            (result,) = score(system, [Scored(own + tokens, len(tokens), len(own) - 1)])
            assert bool(result.greedy.all())


@pytest.mark.parametrize("name", RATIO)
def test_predicted_cost_is_the_counted_one(name, systems):
    system = systems["llama"]
    ids, prompt = random_ids(200), 160
    chosen = create(name, sparsity=0.5)
    system.counters.reset()
    with on(system, (name, {"sparsity": 0.5})):
        score(system, [Scored(ids, 200 - prompt + 1, prompt)])
    request = Request(prompt, 199 - prompt)
    predicted, dense = chosen.adapter.cost(system, request, chosen.budget), dense_cost(system.shape, request)
    sums = system.counters.sums
    for phase in ("prefill", "decode"):
        kept = sums[f"{phase}.attention.kept"] * system.shape.pair_flops
        assert predicted.of(phase).attention == pytest.approx(kept, rel=0.05)
        assert predicted.of(phase).index == pytest.approx(sums[f"{phase}.attention.index_flops"])
        assert sums[f"{phase}.attention.visible"] * system.shape.pair_flops == dense.of(phase).attention
        extra = (
            predicted.of(phase).bytes_kv_read
            - dense.of(phase).bytes_kv_read * predicted.of(phase).attention / dense.of(phase).attention
        )
        assert extra == pytest.approx(sums[f"{phase}.attention.index_bytes"], abs=1e-3)


def test_a_stack_acts_in_both_phases_each_in_its_own(systems):
    system = systems["llama"]
    system.counters.reset()
    with on(system, ("vertical-slash", {"sparsity": 0.5}), ("quest", {"sparsity": 0.8})):
        assert system.decode_from_context_end
        assert not system.prefix_invariant
        score(system, [Scored(random_ids(200), 60, 140)])
    ratio = system.counters.ratio
    assert ratio("prefill.attention.kept", "prefill.attention.visible") == pytest.approx(0.5, abs=0.03)
    assert ratio("decode.attention.kept", "decode.attention.visible") == pytest.approx(0.2, abs=0.03)


@pytest.fixture(scope="module")
def trained_views():
    """Views of every layer of a trained model: a prompt, and decoded queries after it."""
    system = models.stories_system()
    found: dict[bool, list] = {False: [], True: []}

    class Watch:
        def attend(self, view):
            found[view.decode].append(replace(view, query=view.query.clone(), key=view.key.clone()))
            return attend_dense(view)

    text = system.tokenizer("".join(models.STORIES)).input_ids[:300]
    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored(text, 60, 240)])
    return system, found


def output_error(policy, captured) -> float:
    total = count = 0.0
    for view in captured:
        out, dense = policy.attend(view), attend_dense(view)
        total += float((out - dense).norm(dim=-1).mean())
        count += 1
    return total / count


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_on_a_trained_model_the_oracle_errs_least_and_random_most(phase, trained_views):
    system, found = trained_views
    errors = {}
    for name in RATIO:
        if phase in phases_of(name):
            knobs = {"factor": 2} if name == "double-sparsity" else {}  # heads of width 8 have no 16 channels
            chosen = create(name, sparsity=0.8, **knobs)
            prepared = chosen.adapter.prepare(system, calibration(), chosen.budget)
            policy = _executor.SelectivePolicy(chosen.adapter, system, prepared, chosen.budget, None)
            errors[name] = output_error(policy, found[phase == "decode"])
    assert min(errors, key=errors.__getitem__) == "oracle-tokens"
    assert errors["oracle-blocks"] == min(errors[name] for name in errors if "block" in name or name == "quest")
    chance = min(errors["random-tokens"], errors["random-blocks"])
    worse = {name for name in errors if errors[name] > chance} - {"random-tokens", "random-blocks"}
    # Of five layers TidalDecode attends in two fully, more than this budget has: it is left with a single key.
    # A dilated window leaves out the token before each query, on which many heads of a trained model live.
    assert worse <= {"tidal-decode", "dilated-window"}, errors


def test_no_two_methods_choose_alike_on_a_trained_model(trained_views):
    system, found = trained_views
    for phase in ("prefill", "decode"):
        chosen: dict[str, list[torch.Tensor]] = {}
        for name in METHODS:
            if phase in phases_of(name):
                policy = views.policy_of(name, system.shape, **views.some_budget(name))
                chosen[name] = views.masks_of(policy, found[phase == "decode"])
        names = sorted(chosen)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                alike = all(torch.equal(a, b) for a, b in zip(chosen[one], chosen[other], strict=True))
                assert not alike, (one, other)


def test_listing_imports_no_torch():
    code = (
        "import sys; from sparsebench.adapters import cards; found = cards('attention'); "
        "assert len(found) > 10; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METHODS)
def test_cards_are_complete(name):
    card = CARDS[name]
    assert card.nearest in CARDS
    assert card.summary.endswith(".")
    assert issubclass(type(create(name).adapter), AttentionAdapter)
    assert get(name).needs_calibration or isinstance(create(name).adapter.prepare(None, None), Prepared)
    if card.role == "method":
        assert card.deviations, "every form here departs from its paper somewhere"


def test_layers_of_the_test_model_are_enough():
    """Methods that leave first layers dense still act in the models used here."""
    for name in METHODS:
        assert len(create(name).adapter.dense_layers(LAYERS)) < LAYERS
