"""The lifecycle of activation methods, in plain calls of a model and in the engine's passes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, STORIES, stories_system, tiny_system

from sparsebench.adapters import attached, create
from sparsebench.adapters.base import Sparsity
from sparsebench.adapters.calibration import Calibration
from sparsebench.cost import Request
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.systems.weights import weight_sparsity

METHODS = ("teal", "wina", "random-activations", "cats", "top-k-mlp")
SCOPES = ("all", "decode", "prefill", "last-half", "last-99")


def text(sequences: int = 6, length: int = 40, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


def ids(rows: int = 2, length: int = 30, seed: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, length)))


def logits(system: Any, tokens: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return system.model(ids() if tokens is None else tokens).logits


@contextmanager
def watched(system: Any, names: list[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What these modules are fed, behind all hooks of the method, [tokens, channels] for each call."""
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)
    modules = dict(system.model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    yield seen
    for handle in handles:
        handle.remove()


def linear_names(system: Any) -> list[str]:
    return [site.name for site in system.linears]


# -- what is masked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["wina", "random-activations"])
def test_equally_many_channels_of_each_token(name: str, method: str) -> None:
    system = tiny_system(name)
    system.counters.reset()
    with attached(system, [create(method, sparsity=0.4, scope="all")]), watched(system, linear_names(system)) as seen:
        logits(system)
    relu = {site.name for site in system.linears if name == "opt" and site.role == "fc2"}
    for key, (x,) in seen.items():
        zeros = (x == 0).sum(dim=1)
        wanted = round(0.4 * x.shape[1])
        assert bool((zeros >= wanted).all()) if key in relu else bool((zeros == wanted).all()), key


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3"])
def test_counters_are_what_a_recount_gives(method: str, name: str) -> None:
    system = tiny_system(name)
    member = create(method, sparsity=0.5, scope="all")
    with attached(system, [member], text()):
        system.counters.reset()
        sites = {site.name: site for site in member.adapter.sites(system)}  # type: ignore[attr-defined]
        linears = [key for key in sites if key in linear_names(system)]
        outputs: dict[str, torch.Tensor] = {}
        handles = [
            site.module.register_forward_hook(lambda module, args, out, key=key: outputs.update({key: out}))
            for key, site in sites.items()
            if site.output
        ]
        with watched(system, linears) as seen:
            logits(system)
        for handle in handles:
            handle.remove()
    met = {**{key: parts[0] for key, parts in seen.items()}, **outputs}
    assert set(met) == set(sites)
    zeros = sum(int((x == 0).sum()) * sites[key].saved for key, x in met.items())
    total = sum(x.numel() * sites[key].saved for key, x in met.items())
    sums = system.counters.sums
    assert (sums["prefill.activation.zeros"], sums["prefill.activation.total"]) == (zeros, total)
    assert sums["prefill.activation.linear"] == 60 * sum(site.weight.numel() for site in system.linears)
    assert not any(key.startswith("decode") for key in sums)
    if method in ("teal", "wina", "random-activations"):
        assert total == sums["prefill.activation.linear"]
    assert (sums["prefill.activation.zeros_before"] > 0) == (name == "opt")


def test_cats_is_what_the_paper_says() -> None:
    system = tiny_system("llama")
    mlp = system.model.model.layers[1].mlp
    x = torch.randn(1, 9, 48)
    with attached(system, [create("cats", sparsity=0.6)], text()) as (_, (prepared,)):
        cut = prepared.state.distributions["block 1.mlp.act_fn"].threshold(0.6)
        with torch.no_grad():
            found = mlp(x)
    with torch.no_grad():
        gate = torch.nn.functional.silu(mlp.gate_proj(x))
        expected = mlp.down_proj(torch.where(gate.abs() > cut, gate, 0) * mlp.up_proj(x))
    torch.testing.assert_close(found, expected)
    assert cut > 0


def test_layers_with_one_input_share_teals_mask_and_not_winas() -> None:
    system = tiny_system("llama")
    names = [f"model.layers.1.self_attn.{role}" for role in ("q_proj", "k_proj", "v_proj")]
    for method, same in (("teal", True), ("random-activations", True), ("wina", False)):
        with attached(system, [create(method, sparsity=0.5, scope="all")], text()), watched(system, names) as seen:
            logits(system)
        first, second, third = (seen[name][0] == 0 for name in names)
        assert torch.equal(first, second) == same
        assert torch.equal(first, third) == same


def test_thresholds_meet_the_target_on_trained_activations() -> None:
    system = stories_system()
    calibration = Calibration.from_texts("stories", STORIES[:2] * 3, system.tokenizer, sequences=8, length=64)
    evaluation = torch.tensor([system.tokenizer(STORIES[2]).input_ids])
    # Thresholds are those of dense inputs: what is cut upstream makes inputs smaller, and a little more is cut.
    for method in ("teal", "cats"):
        for sparsity in (0.25, 0.5, 0.75):
            member = create(method, sparsity=sparsity, scope="all")
            with attached(system, [member], calibration):
                for tokens, near in ((torch.from_numpy(calibration.ids.copy()), 0.02), (evaluation, 0.05)):
                    system.counters.reset()
                    logits(system, tokens)
                    found = system.counters.ratio("prefill.activation.zeros", "prefill.activation.total")
                    assert found == pytest.approx(sparsity, abs=near), (method, len(tokens))


@pytest.mark.parametrize("method", METHODS)
def test_sparsity_grows_with_the_budget(method: str) -> None:
    system = tiny_system()
    found = []
    for sparsity in (0.0, 0.2, 0.5, 0.9):
        with attached(system, [create(method, sparsity=sparsity, scope="all")], text()):
            system.counters.reset()
            logits(system)
        found.append(system.counters.ratio("prefill.activation.zeros", "prefill.activation.total"))
    assert found[0] == 0
    assert found == sorted(found)
    assert found[3] == pytest.approx(0.9, abs=0.05)


# -- which tokens ------------------------------------------------------------------------------------------------------


def chosen(scope: str, length: int, prompt: int) -> list[bool]:
    """Which of `length` tokens, of which `prompt` are the prompt, a scope holds; restated from its definition."""
    last = {"last-half": prompt // 2, "last-99": int(0.99 * prompt)}
    return [
        {"all": True, "decode": i >= prompt, "prefill": i < prompt}.get(scope, i >= prompt - last.get(scope, 0))
        for i in range(length)
    ]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_scope_in_plain_calls(scope: str, name: str) -> None:
    system = tiny_system(name)
    key = system.linears[0].name
    with attached(system, [create("wina", sparsity=0.5, scope=scope)]), watched(system, [key]) as seen:
        system.counters.reset()
        logits(system, ids(3, 25))
        sparse = (seen[key][0] == 0).any(dim=1).reshape(3, 25)
        assert sparse.tolist() == [chosen(scope, 25, 25)] * 3
        entries = 3 * sum(chosen(scope, 25, 25))
        unit = sum(site.weight.numel() for site in system.linears)
        assert system.counters.sums["prefill.activation.total"] == entries * unit
        system.counters.reset()
        logits(system, ids(3, 1))  # one position is decode
        assert bool((seen[key][1] == 0).any(dim=1).all()) == (scope != "prefill")
        assert system.counters.sums["decode.activation.linear"] == 3 * unit
        assert system.counters.sums["decode.activation.total"] == (0 if scope == "prefill" else 3 * unit)


@pytest.mark.parametrize("scope", SCOPES)
def test_scope_in_the_engine(scope: str) -> None:
    """Every token of the engine's passes is sparse exactly where the scope says, whatever shares a pass with it."""
    system = tiny_system("llama", batch_tokens=90)
    generator = np.random.default_rng(0)
    lead = generator.integers(0, 256, 20).tolist()
    requests = []
    for length, prefill in ((40, 30), (40, 30), (25, 25), (33, 12), (50, 49)):
        tokens = lead + generator.integers(0, 256, length - 20).tolist()
        requests.append(Scored(tokens, 5, prefill))
    key = system.linears[0].name
    found: dict[int, set[tuple[int, int, bool]]] = defaultdict(set)
    module = dict(system.model.named_modules())[key]

    def look(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        flow = system.flow
        sparse = (args[0][0] == 0).any(dim=1)
        for position, prompt, mark in zip(flow.positions, flow.prompts, sparse, strict=True):
            found[int(prompt)].add((int(position), int(prompt), bool(mark)))

    with attached(system, [create("wina", sparsity=0.5, scope=scope)]):
        handle = module.register_forward_pre_hook(look)
        system.counters.reset()
        score(system, requests)
        handle.remove()
    sums = system.counters.sums
    unit = sum(site.weight.numel() for site in system.linears)
    for phase in ("prefill", "decode"):
        assert sums[f"{phase}.activation.linear"] == sums[f"{phase}.tokens"] * unit
    acting = system.linears[0].weight.shape[0]
    assert acting
    prompts = {min(r.prefill, len(r.tokens) - 1): len(r.tokens) - 1 for r in requests}
    for prompt, marks in found.items():
        for position, _, mark in marks:
            assert mark == chosen(scope, prompts[prompt], prompt)[position], (prompt, position)
    if scope.startswith("last"):  # nothing is shared, so every token of every request ran
        expected = [chosen(scope, len(r.tokens) - 1, min(r.prefill, len(r.tokens) - 1)) for r in requests]
        total = sums["prefill.activation.total"] + sums["decode.activation.total"]
        assert total == sum(map(sum, expected)) * unit


def test_scopes_that_ask_for_the_prompt_are_not_prefix_invariant() -> None:
    for scope in SCOPES:
        adapter = create("teal", sparsity=0.5, scope=scope).adapter
        assert adapter.prefix_invariant() == (not scope.startswith("last"))
        system = tiny_system()
        with attached(system, [create("wina", sparsity=0.5, scope=scope)]):
            assert system.prefix_invariant == (not scope.startswith("last"))
            assert system.decode_from_context_end == (scope != "prefill")
        assert system.prefix_invariant
        assert not system.decode_from_context_end


# -- batches and prefixes ----------------------------------------------------------------------------------------------


def engine_scores(system: Any, member: Sparsity, calibration: Calibration, batch_tokens: int) -> np.ndarray:
    system.batch_tokens = batch_tokens
    generator = np.random.default_rng(1)
    lead = generator.integers(0, 256, 24).tolist()
    requests = [Scored(lead + generator.integers(0, 256, n).tolist(), n, 24 + n // 2) for n in (6, 9, 12, 20)]
    with attached(system, [member], calibration):
        return np.concatenate([s.logprobs for s in score(system, requests)])


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_decides_nothing(method: str) -> None:
    system, calibration = tiny_system(), text()
    member = create(method, sparsity=0.5, scope="all")
    alone = engine_scores(system, member, calibration, 1)
    together = engine_scores(system, member, calibration, 10_000)
    np.testing.assert_allclose(alone, together, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_engine_is_a_plain_call(method: str) -> None:
    system, calibration = tiny_system(), text()
    tokens = ids(3, 40)
    with attached(system, [create(method, sparsity=0.5)], calibration):  # scopes as published
        with torch.no_grad():
            plain = torch.log_softmax(system.model(tokens[:, :-1]).logits, dim=-1)
        expected = plain.gather(2, tokens[:, 1:, None])[..., 0]
        found = score(system, [Scored(row, 39, 40) for row in tokens.tolist()])
    np.testing.assert_allclose(np.stack([s.logprobs for s in found]), expected.numpy(), atol=2e-4)


def test_random_channels_follow_positions_into_decode() -> None:
    system, tokens = tiny_system(), ids(2, 12)
    with attached(system, [create("random-activations", sparsity=0.5, scope="all")]), torch.no_grad():
        whole = system.model(tokens).logits
        first = system.model(tokens[:, :9], use_cache=True)
        steps = [first.logits]
        cache = first.past_key_values
        for place in range(9, 12):
            out = system.model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
            steps.append(out.logits)
            cache = out.past_key_values
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_positions_of_padded_calls() -> None:
    system, tokens = tiny_system(), ids(1, 10)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = (torch.arange(14) >= 4).long()[None]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with attached(system, [create("random-activations", sparsity=0.5, scope="last-half")]), torch.no_grad():
        plain = system.model(tokens).logits
        moved = system.model(padded, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(moved[:, 4:], plain, rtol=1e-4, atol=1e-4)


# -- the way back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_is_dense_and_the_way_back(name: str, method: str) -> None:
    system = tiny_system(name, dtype=torch.bfloat16)
    dense = logits(system)
    with attached(system, [create(method, sparsity=0.0)], text()):
        assert torch.equal(logits(system), dense)
    with pytest.raises(KeyError), attached(system, [create(method, sparsity=0.6)], text()):
        assert not torch.equal(logits(system), dense)
        raise KeyError
    assert torch.equal(logits(system), dense)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in system.model.modules())


# -- preparing ---------------------------------------------------------------------------------------------------------


def test_one_preparation_serves_all_budgets_and_scopes() -> None:
    system, calibration = tiny_system(), text()
    teal, other = create("teal", sparsity=0.3), create("teal", sparsity=0.6, scope="decode")
    first = teal.adapter.prepare(system, calibration)
    assert other.adapter.prepare(system, calibration).state.distributions is first.state.distributions
    facts = json.loads(json.dumps(first.facts))
    assert facts["calibration"] == calibration.describe()
    assert first.tokens == calibration.tokens
    with attached(system, [create("magnitude", sparsity=0.5)]):
        assert teal.adapter.prepare(system, calibration).state.distributions is not first.state.distributions


def test_only_thresholds_read_a_text() -> None:
    system = tiny_system()
    assert create("wina", sparsity=0.5, rule="threshold").adapter.reads_calibration()
    with attached(system, [create("wina", sparsity=0.5)]):
        pass
    with pytest.raises(InputError, match="reads a calibration text"), attached(system, [create("teal", sparsity=0.5)]):
        pass


def test_long_texts_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.adapters.activation import base

    system, calibration = tiny_system(), text(8, 40)
    teal = create("teal", sparsity=0.5).adapter
    full = teal.prepare(system, calibration).state.distributions
    monkeypatch.setattr(base, "CALIBRATION_TOKENS", 100)  # every fourth of 320
    thin = teal.prepare(tiny_system(), calibration).state.distributions
    key = system.linears[0].name
    assert (full[key].counts.sum(), thin[key].counts.sum()) == (320 * 48, 80 * 48)


def test_bad_knobs() -> None:
    with pytest.raises(InputError, match="scope"):
        create("teal", sparsity=0.5, scope="some")
    with pytest.raises(InputError, match="rule"):
        create("random-activations", sparsity=0.5, rule="threshold")
    with pytest.raises(InputError, match="no budget 'pattern'"):
        create("teal", pattern="2:4")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", SCOPES)
def test_cost(method: str, scope: str) -> None:
    system = tiny_system()
    member, request = create(method, sparsity=0.5, scope=scope), Request(100, 10)
    found = member.adapter.cost(system, request, member.budget)
    dense = create(method, sparsity=0.0).adapter.cost(system, request, None)
    covered = {"cats": 2 * 48 * 96, "top-k-mlp": 48 * 96}.get(method)
    share = 3 * covered / system.shape.linear_params if covered else 1.0
    prefill = {"all": 1, "decode": 0, "prefill": 1, "last-half": 0.5, "last-99": 0.99}[scope]
    decode = 0 if scope == "prefill" else 1
    assert found.prefill.linear == pytest.approx(dense.prefill.linear * (1 - 0.5 * share * prefill), rel=1e-4)
    assert found.decode.linear == pytest.approx(dense.decode.linear * (1 - 0.5 * share * decode), rel=1e-4)
    assert found.prefill.bytes_weights == dense.prefill.bytes_weights
    saved = dense.decode.bytes_weights - found.decode.bytes_weights
    assert saved == pytest.approx(10 * 2 * 0.5 * share * decode * system.shape.linear_params, rel=1e-3)


# -- stacks ------------------------------------------------------------------------------------------------------------


def test_pruning_on_top_of_sparse_activations_and_the_other_way() -> None:
    system, calibration = tiny_system("gpt2", batch_tokens=90), text(5, 40)  # batches of 2, 2 and 1
    for stack in (["teal", "wanda"], ["wanda", "teal"], ["wina", "sparsegpt"]):
        members = [create(name, sparsity=0.5) for name in stack]
        with attached(system, members, calibration):
            assert weight_sparsity(system).sparsity == pytest.approx(0.5, abs=0.01)
            system.counters.reset()
            logits(system)
            found = system.counters.ratio("prefill.activation.zeros", "prefill.activation.total")
            assert found == pytest.approx(0.5, abs=0.06)
    assert weight_sparsity(system).zeros == 0


def test_better_than_chance_on_a_trained_model() -> None:
    system = stories_system()
    calibration = Calibration.from_texts("stories", STORIES * 3, system.tokenizer, sequences=8, length=96)
    tokens = [torch.tensor([system.tokenizer(story).input_ids]) for story in STORIES]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(system.model(row, labels=row).loss) for row in tokens)

    losses = {"dense": loss()}
    for method in ("teal", "wina", "random-activations"):
        with attached(system, [create(method, sparsity=0.4, scope="all")], calibration):
            losses[method] = loss()
    assert losses["dense"] < min(losses["teal"], losses["wina"])
    assert max(losses["teal"], losses["wina"]) < 0.6 * losses["random-activations"], losses


# -- searching for the sparsity of each site ---------------------------------------------------------------------------


def test_greedy_search_by_hand() -> None:
    # Two sites of 100 and 50 weights, a step of 5 weights; the first costs 1 for each of its weights, the second 3
    # up to 20 weights, and nothing from there on.
    from sparsebench.adapters.activation._greedy import search
    from sparsebench.adapters.activation.base import Site

    module = torch.nn.Identity()
    sites = [Site("wide", module, None, 10, 10, 0), Site("narrow", module, None, 10, 5, 0)]
    levels = {"wide": 0.0, "narrow": 0.0}

    def error() -> float:
        narrow = 50 * levels["narrow"]
        return 100 * levels["wide"] + (3 * narrow if narrow < 22 else 30)

    search(sites, levels, levels.__setitem__, error, 0.1)
    assert levels == {"wide": pytest.approx(0.15), "narrow": 0.0}
    levels.update(wide=0.0, narrow=0.4)
    search(sites, levels, levels.__setitem__, error, 0.12)  # 18 weights: three steps of 5 and one of 3
    assert levels == {"wide": 0.0, "narrow": pytest.approx(0.76)}


@pytest.mark.parametrize("method", ["teal", "wina"])
def test_greedy_allocation_meets_the_target_and_helps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.adapters.activation import _greedy

    monkeypatch.setattr(_greedy, "STEP", 0.2)
    system = stories_system()
    calibration = Calibration.from_texts("stories", STORIES * 3, system.tokenizer, sequences=4, length=48)
    tokens = torch.from_numpy(calibration.ids.copy())
    changes = {}
    with torch.no_grad():
        dense = system.model(tokens, output_hidden_states=True).hidden_states[1]
    for allocation in ("uniform", "greedy"):
        member = create(method, sparsity=0.5, scope="all", allocation=allocation)
        with attached(system, [member], calibration) as (_, (prepared,)):
            system.counters.reset()
            with torch.no_grad():
                found = system.model(tokens, output_hidden_states=True).hidden_states[1]
            ratio = system.counters.ratio("prefill.activation.zeros", "prefill.activation.total")
            assert ratio == pytest.approx(0.5, abs=0.02)
        changes[allocation] = float((found - dense)[:, 36:].norm(dim=1).mean())
    levels = prepared.facts["levels"]
    sites = {site.name: site.weight.numel() for site in system.linears}
    assert set(levels) == set(sites)
    for block in range(5):
        own = {name: size for name, size in sites.items() if f".{block}." in name}
        assert sum(levels[n] * size for n, size in own.items()) == pytest.approx(0.5 * sum(own.values()), rel=1e-3)
    assert changes["greedy"] < changes["uniform"]
    other = create(method, sparsity=0.6, scope="all", allocation="greedy")
    with pytest.raises(InputError, match="prepared at 50%"), other.adapter.attach(system, prepared, other.budget):
        pass
