"""Pruning beyond masks: removed blocks and channels, codes and factors, on tiny models of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, PLAIN, STORIES, stories_system, tiny_system

from sparsebench.account import Counted, account
from sparsebench.adapters import attached, cards, create, get
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.pruning._removal import feed_forwards
from sparsebench.cost import PHASES, Request, dense_cost
from sparsebench.engine.packing import obstacle
from sparsebench.errors import InputError, MissingError
from sparsebench.realised import _storage, _weights
from sparsebench.records import Outcome
from sparsebench.systems.weights import prunable, weight_sparsity

SMALL_SEARCH = {"generations": 2, "offspring": 3, "tokens": (24, 48)}
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "rtn-8": ("rtn", {"bits": 8}, 0.0),
    "rtn-4": ("rtn", {"bits": 4}, 0.0),
    "gptq": ("gptq", {"bits": 4}, 0.0),
    "squeezellm": ("squeezellm", {"bits": 4}, 0.0),
    "gqsa": ("gqsa", {"sparsity": 0.5}, 0.5),
    "welore": ("welore", {"sparsity": 0.3}, 0.3),
    "depth": ("depth", {"sparsity": 0.3}, 0.3),
    "cfsp": ("cfsp", {"sparsity": 0.2}, 0.2),
    "wanda-variant": ("wanda-variant", {"sparsity": 0.5}, 0.5),
    "ecoflap": ("ecoflap", {"sparsity": 0.5}, 0.5),
    "evopress": ("evopress", {"sparsity": 0.5, **SMALL_SEARCH}, 0.5),
    "random-search": ("random-search", {"sparsity": 0.5, **SMALL_SEARCH}, 0.5),
    "random-allocation": ("random-allocation", {"sparsity": 0.5}, 0.5),
}
"""A budget of each method, and the share of prunable weights that is then left out."""
ODD = ("rwkv", "bloom", "falcon", "gpt_neo", "llama4")
"""Architectures without packed rows that can lose blocks and channels all the same."""


def calibration(sequences: int = 4, length: int = 24, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


def logits(system: Any) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 256, (2, 30)))
    with torch.no_grad():
        return system.model(ids).logits


def state_of(system: Any) -> dict[str, Any]:
    """All that a method may have changed."""
    modules = system.model.named_modules()
    plain = {
        f"{name}.{key}": value
        for name, module in modules
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | bool)
    }
    memory = {name: (p.data_ptr(), tuple(p.shape), p.requires_grad) for name, p in system.model.named_parameters()}
    hooks = [name for name, m in system.model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return {
        "plain": plain,
        "memory": memory,
        "hooks": hooks,
        "config": system.model.config.to_dict(),
        "blocks": [id(block) for block in system.blocks],
        "stored": system.stored,
        "unreduced": system.unreduced,
        "shape": system.shape,
    }


def realised(system: Any, method: str, **knobs: Any) -> Outcome:
    """What a cell would say of the weights."""
    member = create(method, **knobs)
    before = weight_sparsity(system)
    outcome = Outcome(status="ok")
    with attached(system, [member], calibration()) as (sparse, _):
        _weights(outcome, (before, weight_sparsity(sparse)), None)
    return outcome


# -- every method on every architecture --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attaching_changes_the_model_and_leaving_restores_it(name: str, case: str) -> None:
    method, knobs, share = CASES[case]
    system = tiny_system(name)
    dense, before = logits(system), state_of(system)
    bits = {key: parameter.detach().clone() for key, parameter in system.model.named_parameters()}
    whole = weight_sparsity(system)
    outcome = Outcome(status="ok")
    with pytest.raises(KeyError), attached(system, [create(method, **knobs)], calibration()):
        now = logits(system)
        _weights(outcome, (whole, weight_sparsity(system)), None)
        assert bool(now.isfinite().all())
        assert not torch.equal(now, dense)
        raise KeyError
    assert outcome.sparsity == pytest.approx(share, abs=0.04)
    assert state_of(system) == before
    assert all(torch.equal(p, bits[key]) for key, p in system.model.named_parameters())
    assert torch.equal(logits(system), dense)


@pytest.mark.parametrize(
    "method", ["rtn", "gptq", "squeezellm", "gqsa", "welore", "depth", "cfsp", "wanda-variant", "ecoflap"]
)
def test_the_full_budget_is_dense(method: str) -> None:
    system = tiny_system("gpt2", dtype=torch.bfloat16)
    dense = logits(system)
    full = {"bits": 16} if method in ("rtn", "gptq", "squeezellm") else {"sparsity": 0.0}
    with attached(system, [create(method, **full)], calibration()):
        assert torch.equal(logits(system), dense)
        assert weight_sparsity(system).zeros == 0


@pytest.mark.parametrize("case", ["rtn-4", "gptq", "squeezellm", "gqsa", "welore", "depth", "cfsp"])
def test_bfloat16_models(case: str) -> None:
    method, knobs, _ = CASES[case]
    system = tiny_system("llama", dtype=torch.bfloat16)
    with attached(system, [create(method, **knobs)], calibration()):
        assert {p.dtype for p in system.model.parameters()} == {torch.bfloat16}
        assert bool(logits(system).isfinite().all())


# -- removed blocks ----------------------------------------------------------------------------------------------------


def skipping(system: Any, blocks: list[int], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The same, the plain way: a block that is gone gives back what it is given."""

    def passing(module: Any, args: Any, options: Any, out: Any) -> Any:
        hidden = args[0] if args else options["hidden_states"]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handles = [system.blocks[index].register_forward_hook(passing, with_kwargs=True) for index in blocks]
    found = compute()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", [*ARCHITECTURES, *ODD])
@pytest.mark.parametrize("order", ["influence", "last", "spread"])
def test_depth_skips_blocks(name: str, order: str) -> None:
    system = tiny_system(name)
    member = create("depth", sparsity=0.34, order=order)
    prepared = member.adapter.prepare(system, calibration(), member.budget)
    gone = member.adapter.gone(prepared.state, len(system.blocks), member.budget)
    expected = skipping(system, gone, lambda: logits(system))
    with member.adapter.attach(system, prepared, member.budget):
        assert len(system.blocks) == len(system.model.config.layer_types if name == "gemma3" else system.blocks)
        torch.testing.assert_close(logits(system), expected, rtol=1e-4, atol=1e-5)
    assert len(gone) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_without_the_first_block(name: str) -> None:
    """Caches count their tokens in layer 0: without renumbering, cached generation would lose its place."""
    system = tiny_system(name)
    member = create("depth", sparsity=0.34, order="influence")
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 12)))
    with member.adapter.attach(system, type("P", (), {"state": [0.0, 1.0, 1.0]})(), member.budget):
        found = {
            cached: system.model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=0)
            for cached in (True, False)
        }
        assert torch.equal(found[True], found[False])
        assert obstacle(system) == ""  # the engine's packed rows agree with plain calls


def test_depth_nests_and_keeps_a_block() -> None:
    depth: Any = create("depth", sparsity=0.5).adapter
    for order in ("influence", "last", "spread"):
        method = type(depth)(order=order)
        influence = [0.5, 0.1, 0.9, 0.3, 0.2, 0.7, 0.4]
        sets = [
            set(method.gone(influence, 7, create("depth", sparsity=s).budget)) for s in (0.0, 0.1, 0.3, 0.5, 0.7, 0.99)
        ]
        assert all(a <= b for a, b in pairwise(sets))
        assert [len(s) for s in sets] == [0, 1, 2, 4, 5, 6]
    assert type(depth)(order="influence").gone([0.5, 0.1, 0.9, 0.3], 4, create("depth", sparsity=0.5).budget) == [1, 3]


def test_depth_influence_is_one_less_the_cosine() -> None:
    system, text = tiny_system(), calibration()
    seen: list[list[torch.Tensor]] = [[], [], []]
    handles = [
        block.register_forward_hook(
            lambda module, args, options, out, at=at: at.append(
                torch.nn.functional.cosine_similarity(
                    args[0] if args else options["hidden_states"], out[0] if isinstance(out, tuple) else out, dim=-1
                ).flatten()
            ),
            with_kwargs=True,
        )
        for block, at in zip(system.blocks, seen, strict=True)
    ]
    with torch.no_grad():
        system.model(torch.from_numpy(text.ids.copy()))
    for handle in handles:
        handle.remove()
    found = create("depth", sparsity=0.5).adapter.prepare(system, text).state
    assert found == pytest.approx([1 - float(torch.cat(at).mean()) for at in seen], abs=1e-5)


@pytest.mark.parametrize("name", ["recurrent_gemma"])
def test_models_that_go_by_the_places_of_blocks_are_refused(name: str) -> None:
    system = tiny_system(name)
    before = len(system.blocks)
    with (
        pytest.raises(InputError, match=r"cannot do without|does not run"),
        attached(system, [create("depth", sparsity=0.34, order="last")]),
    ):
        pass
    assert len(system.blocks) == before
    assert bool(logits(system).isfinite().all())


# -- removed channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARCHITECTURES, *ODD, "lfm2", "recurrent_gemma"])
def test_cfsp_equals_channels_set_to_zero(name: str) -> None:
    system = tiny_system(name)
    member = create("cfsp", sparsity=0.2)
    prepared = member.adapter.prepare(system, calibration())
    widths = {mlp.down.name: mlp.channels for mlp in feed_forwards(system)}
    assert len(widths) == len(system.blocks)
    with member.adapter.attach(system, prepared, member.budget):
        small = logits(system)
        left = {site.name: site.weight.shape[1] for site in system.linears if site.name in widths}
    assert sum(left.values()) < sum(widths.values())
    assert all(1 <= left[key] <= width for key, width in widths.items())
    scores = prepared.state[1]
    with torch.no_grad():
        for mlp in feed_forwards(system):
            order = scores[mlp.down.name].sort(descending=True, stable=True).indices
            mlp.down.weight[:, order[left[mlp.down.name] :]] = 0
    torch.testing.assert_close(small, logits(system), rtol=1e-4, atol=1e-5)


def test_cfsp_meets_the_budget_and_says_when_it_cannot() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=4, length=64)
    before = weight_sparsity(system).prunable
    for sparsity in (0.1, 0.25, 0.4, 0.55):
        with attached(system, [create("cfsp", sparsity=sparsity)], text):
            assert weight_sparsity(system).prunable / before == pytest.approx(1 - sparsity, abs=0.002)
    with pytest.raises(InputError, match="attention stays"), attached(system, [create("cfsp", sparsity=0.9)], text):
        pass
    with attached(system, [create("cfsp", sparsity=0.3, multiple=16)], text):
        assert {mlp.channels % 16 for mlp in feed_forwards(system)} == {0}
        assert weight_sparsity(system).prunable / before == pytest.approx(0.7, abs=0.03)


def test_cfsp_score_by_hand() -> None:
    cfsp: Any = get("cfsp")
    up, down = torch.tensor([[1.0, 3], [1, 1]]), torch.tensor([[2.0, 2], [1, 3]])
    norm = torch.tensor([1.0, 2.0])
    # Down, times norms: rows 2 4 and 1 6, so shares 1/3 2/3 and 1/7 6/7; up, channels over each input: 1/2 1/2, 3/4 1/4.
    first = (1 / 3 + 1 / 7) / 2 + (1 / 2 + 3 / 4) / 2
    second = 2 * ((2 / 3 + 6 / 7) / 2 + (1 / 2 + 1 / 4) / 2)
    assert cfsp().score([up], down, norm).tolist() == pytest.approx([first, second])
    alone = cfsp(relative="channel").score([up], down, norm)
    assert alone.tolist() == pytest.approx([1.0, 2.0])  # weights cancel: (1/2 + 1/2) times the norm


def test_cfsp_blocks_that_turn_more_keep_more() -> None:
    cfsp: Any = get("cfsp")()
    widths = cfsp.widths([0.05, 0.1, 0.2], [100, 100, 100], [10, 10, 10], 1500.0)
    assert sum(widths) == 150
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("sparsity", [0.2, 0.5])
@pytest.mark.parametrize("angles", [[0.05, 0.1, 0.2], [0.08, 0.09, 0.1, 0.11]])
def test_cfsp_shares_are_those_of_sums_over_the_papers_text(angles: list[float], sparsity: float) -> None:
    """As the released code has them: of angles that are summed over 128 sequences of 1,024 tokens."""
    from sparsebench.adapters.pruning.cfsp import shares

    sums = np.array(angles) * 128 * 1024
    worth = 1 / (1 + np.exp(-(sums - sums.mean()) / 1e4))
    if worth.max() / worth.mean() * (1 - sparsity) >= 1:
        spread = worth.mean() * (1 / (1 - sparsity) - 1) / (worth.max() - worth.mean()) / 1.05
        worth = worth.mean() + spread * (worth - worth.mean())
    kept = worth / worth.mean() * (1 - sparsity)
    assert shares(angles, [1000] * len(angles), sparsity) == pytest.approx(kept.tolist())


# -- storage -----------------------------------------------------------------------------------------------------------


def test_bits_per_weight() -> None:
    system = tiny_system()  # all columns are 48, 96
    columns = {site.name: site.weight.shape for site in prunable(system)}
    size = sum(rows * width for rows, width in columns.values())
    found = {
        "dense": realised(system, "magnitude", sparsity=0.0).bits_per_weight,
        "half": realised(system, "magnitude", sparsity=0.5).bits_per_weight,
        "few": realised(system, "magnitude", sparsity=0.02).bits_per_weight,
        "rtn": realised(system, "rtn", bits=4, group=48).bits_per_weight,
        "even": realised(system, "rtn", bits=8, group=0, symmetric=True).bits_per_weight,
        "depth": realised(system, "depth", sparsity=0.34).bits_per_weight,
        "gqsa": realised(system, "gqsa", sparsity=0.5).bits_per_weight,
    }
    assert found["dense"] == 16
    assert found["half"] == pytest.approx(9)
    assert found["few"] == 16  # a bitmap would take more than it saves
    assert found["rtn"] == pytest.approx(4 + (16 + 4) / 48)
    assert found["even"] == pytest.approx(8 + sum(16 * rows for rows, _ in columns.values()) / size)
    assert found["depth"] == pytest.approx(16 * 2 / 3)
    pointers = sum(32 * (rows + 1) for rows, _ in columns.values()) / size
    assert found["gqsa"] == pytest.approx(0.5 * (4 + (16 + 4 + 16) / 16) + pointers)


def test_a_stack_counts_zeros_and_codes() -> None:
    system = tiny_system()
    outcome = Outcome(status="ok")
    before = weight_sparsity(system)
    with attached(system, [create("magnitude", sparsity=0.5), create("rtn", bits=8)]):
        after = weight_sparsity(system)
        _weights(outcome, (before, after), None)
    assert outcome.sparsity == pytest.approx(0.5)
    assert 8 < (outcome.bits_per_weight or 0) < 9
    for second in ("magnitude", "welore"):
        with (
            pytest.raises(InputError, match="codes or factors already"),
            attached(system, [create("rtn", bits=8), create(second, sparsity=0.5)]),
        ):
            pass
    assert system.stored == {}


@pytest.mark.parametrize("case", ["rtn-4", "gptq", "squeezellm", "gqsa", "depth", "cfsp"])
def test_predicted_cost_is_the_counted_cost(case: str) -> None:
    """Of one request of 30 and 5 tokens: the cost model before, and the account of what is attached."""
    method, knobs, _ = CASES[case]
    system = tiny_system()
    member, request = create(method, **knobs), Request(30, 5)
    predicted = member.adapter.cost(system, request, member.budget)
    before, whole = weight_sparsity(system), system.shape
    with attached(system, [member], calibration()):
        weights, shape = (before, weight_sparsity(system)), system.shape
        storage = _storage([member], weights, shape)
        dense = system.unreduced
    assert dense in (None, whole)
    attending = len(shape.windows)
    sums = {
        "prefill.tokens": 30.0,
        "prefill.causal_pairs": 30 * 31 / 2,
        "prefill.scored": 1.0,
        "decode.tokens": 5.0,
        "decode.causal_pairs": float(sum(range(31, 36))),
        "decode.scored": 5.0,
    }
    found = account(shape, *(Counted.of(shape, sums, phase, dense) for phase in PHASES), storage, dense)
    flops = sum(line.sparse for line in found.lines if line.unit == "flops")
    # The budget of 20 % is met to the nearest channel.
    assert flops == pytest.approx(predicted.whole.flops, rel=2e-3 if case == "cfsp" else 1e-6)
    decode = sum(line.sparse for line in found.lines if line.unit == "bytes")
    assert decode == pytest.approx(predicted.decode.bytes / 5, rel=2e-3 if case == "cfsp" else 1e-4)
    flops_dense = sum(line.dense for line in found.lines if line.unit == "flops")
    assert flops_dense == pytest.approx(dense_cost(whole, request).whole.flops)
    assert attending == (2 if case == "depth" else 3)


# -- what cannot run ---------------------------------------------------------------------------------------------------


NEEDY = [card.id for card in cards("pruning") if card.needs]


def test_methods_that_need_something_are_listed() -> None:
    assert NEEDY == [
        "flash-llm", "gmp", "hesso", "intel-sparse", "llm-pruner", "loraprune", "pat", "sms", "turbo-vbi", "wgsef",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NEEDY)
def test_and_say_what_they_need(name: str) -> None:
    with pytest.raises(MissingError, match="needs") as caught:
        create(name, sparsity=0.5)
    assert caught.value.exit_code == 2
    assert all(need in caught.value.message for need in get(name).card.needs)
    with pytest.raises(MissingError), attached(tiny_system(), [create(name)]):
        pass


# -- a trained model ---------------------------------------------------------------------------------------------------


def story_loss(system: Any) -> float:
    losses = []
    for text in STORIES:
        ids = torch.tensor([system.tokenizer(text).input_ids])
        with torch.no_grad():
            losses.append(float(system.model(ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_losses_are_ordered_on_a_trained_model() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=12, length=96)

    def loss(method: str, **knobs: Any) -> float:
        with attached(system, [create(method, **knobs)], text):
            return story_loss(system)

    dense = story_loss(system)
    assert loss("rtn", bits=8) == pytest.approx(dense, abs=0.02)
    assert dense < loss("rtn", bits=4, group=64) < loss("rtn", bits=3, group=64) < loss("rtn", bits=2, group=64)
    assert dense < loss("gptq", bits=3, group=64) < loss("rtn", bits=3, group=64)
    assert loss("squeezellm", bits=3) < loss("rtn", bits=3, group=0)  # values of a row against one grid for it
    assert loss("squeezellm", bits=3) < loss("squeezellm", bits=3, outliers=0, sensitive=0) + 0.05
    assert dense < loss("gqsa", sparsity=0.2) < loss("gqsa", sparsity=0.5)
    assert dense < loss("welore", sparsity=0.1) < loss("welore", sparsity=0.4)
    assert dense < loss("cfsp", sparsity=0.1) < loss("cfsp", sparsity=0.4)
    assert dense < loss("depth", sparsity=0.2) < loss("depth", sparsity=0.6)


def test_a_search_lessens_the_divergence() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=4, length=64)
    knobs = {"initial": "magnitude", "compare_group": "layer", "generations": 6, "tokens": (64, 256)}
    with attached(system, [create("evopress", sparsity=0.5, **knobs)], text) as (_, (prepared,)):
        sparsity = weight_sparsity(system).sparsity
    history = prepared.facts["divergence"]
    assert sparsity == pytest.approx(0.5, abs=0.002)
    assert all(later <= earlier for earlier, later in pairwise(history))
    with attached(system, [create("evopress", sparsity=0.5, **{**knobs, "generations": 1, "offspring": 1})], text) as (
        _,
        (uniform,),
    ):
        pass
    assert history[-1] < 0.9 * uniform.facts["divergence"][0]
    assert sum(prepared.facts["layer_levels"]) == 0
    assert any(prepared.facts["layer_levels"])


@pytest.mark.parametrize("ratios", ["er", "ecoflap", "evopress", "random-search"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "dsnot"])
def test_ratios_go_with_any_score(method: str, ratios: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.adapters.pruning import _allocation
    from sparsebench.adapters.pruning._search import Search

    small = _allocation.Settings(sequences=2, search=Search(2, 3, (2, 1), (24, 48)))
    monkeypatch.setattr(_allocation, "Settings", lambda: small)
    system = tiny_system("gpt2")
    with attached(system, [create(method, sparsity=0.5, ratios=ratios)], calibration()):
        assert weight_sparsity(system).sparsity == pytest.approx(0.5, abs=0.02)
        shares = {round(float((site.weight == 0).float().mean()), 3) for site in prunable(system)}
    assert len(shares) > 1


@pytest.mark.parametrize("method", ["magnitude", "random-weights", "wanda", "sparsegpt", "dsnot"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])
def test_one_of_four(name: str, method: str) -> None:
    system = tiny_system(name)
    with attached(system, [create(method, pattern="1:4")], calibration()):
        for site in prunable(system):
            zeros = (site.weight.detach() == 0).reshape(site.weight.shape[0], -1, 4).sum(dim=2)
            if method == "sparsegpt":  # inputs that never fire lose all their weights beside
                assert int(zeros.min()) == 1
            else:
                assert torch.equal(zeros, torch.ones_like(zeros))
    assert weight_sparsity(system).zeros == 0


def test_odd_models_restore_too() -> None:
    for name in PLAIN:
        system = tiny_system(name)
        bits = {key: parameter.detach().clone() for key, parameter in system.model.named_parameters()}
        for case in ("rtn-4", "gqsa", "welore"):
            method, knobs, _ = CASES[case]
            with attached(system, [create(method, **knobs)], calibration()):
                assert bool(logits(system).isfinite().all()), (name, case)
            assert all(torch.equal(p, bits[key]) for key, p in system.model.named_parameters()), (name, case)
