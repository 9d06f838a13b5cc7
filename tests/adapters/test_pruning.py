"""The lifecycle of pruning, on tiny models of many architectures and on one that was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, STORIES, stories_system, tiny_system

from sparsebench.adapters import attached, create
from sparsebench.adapters.base import Sparsity
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import InputStatistics, block_by_block, dense_statistics
from sparsebench.adapters.pruning._groups import rounded
from sparsebench.cost import Request
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.systems.weights import prunable, weight_sparsity

METHODS = ("magnitude", "random-weights", "wanda", "sparsegpt", "dsnot")


def calibration(sequences: int = 4, length: int = 24, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


def weights(system: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in system.model.named_parameters()}


def masks(system: Any, stack: list[Sparsity], text: Calibration | None = None) -> dict[str, torch.Tensor]:
    with attached(system, stack, text):
        return {site.name: site.weight.detach() == 0 for site in prunable(system)}


def logits(system: Any) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 256, (2, 30)))
    with torch.no_grad():
        return system.model(ids).logits


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_realised_sparsity_is_exact(name: str, method: str) -> None:
    system = tiny_system(name)
    before = weight_sparsity(system)
    assert before.zeros == 0
    with attached(system, [create(method, sparsity=0.3)], calibration()):
        found = weight_sparsity(system)
        shapes = [tuple(site.weight.shape) for site in prunable(system)]
    if method == "magnitude":
        expected = sum(rounded(0.3, out * channels) for out, channels in shapes)
    elif method == "sparsegpt":
        expected = sum(rounded(0.3, out * channels) for out, channels in shapes)  # 96 columns: one block
    else:
        expected = sum(out * rounded(0.3, channels) for out, channels in shapes)
    assert found.zeros == expected
    assert (found.prunable, found.total) == (before.prunable, before.total)


def test_global_group_is_exact() -> None:
    system = tiny_system("gpt2")
    with attached(system, [create("magnitude", sparsity=0.37, compare_group="global")]):
        found = weight_sparsity(system)
    assert found.zeros == rounded(0.37, found.prunable)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("zeros", "group"), [(2, 4), (4, 8), (1, 5)])
def test_patterns(method: str, zeros: int, group: int) -> None:
    system = tiny_system("gpt2")  # 48 and 96 columns: with groups of 5, some stay over
    with attached(system, [create(method, pattern=f"{zeros}:{group}")], calibration()):
        for site in prunable(system):
            weight = site.weight.detach()
            whole = weight.shape[1] // group * group
            grouped = (weight[:, :whole] == 0).reshape(len(weight), -1, group)
            assert torch.equal(grouped.sum(dim=2), torch.full(grouped.shape[:2], zeros))
            assert not bool((weight[:, whole:] == 0).any())


def test_existing_zeros_are_counted_beside() -> None:
    system = tiny_system()
    site = prunable(system)[0]
    with torch.no_grad():
        site.weight[:, :12] = 0  # a quarter of 48 columns
    before = weight_sparsity(system)
    assert before.zeros == site.weight.shape[0] * 12
    with attached(system, [create("magnitude", sparsity=0.5, compare_group="row")]):
        assert weight_sparsity(system).sparsity == 0.5  # the zeros that were there are among those that go
    with attached(system, [create("random-weights", sparsity=0.5)]):
        assert weight_sparsity(system).sparsity > 0.5  # chance does not look for them


def test_shares_of_parameters() -> None:
    system = tiny_system("llama")
    found = weight_sparsity(system)
    linears = sum(m.weight.numel() for m in system.model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert found.prunable == linears
    assert found.total == sum(p.numel() for p in system.model.parameters())  # the tied LM head once
    with attached(system, [create("magnitude", sparsity=0.5)]):
        pruned = weight_sparsity(system)
    assert pruned.sparsity_of_total == pytest.approx(0.5 * linears / found.total, abs=1e-9)


# -- nesting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("magnitude", {}),
        ("magnitude", {"compare_group": "global"}),
        ("random-weights", {"compare_group": "row"}),
        ("wanda", {"stats_pass": "dense"}),
        ("wanda", {"stats_pass": "dense", "compare_group": "global"}),
    ],
)
def test_masks_nest(method: str, knobs: dict[str, Any]) -> None:
    system = tiny_system()
    text = calibration()
    last: dict[str, torch.Tensor] | None = None
    for sparsity in (0.1, 0.3, 0.5, 0.8):
        found = masks(system, [create(method, sparsity=sparsity, **knobs)], text)
        if last is not None:
            assert all(not bool((last[name] & ~found[name]).any()) for name in found)
        last = found


def test_random_masks_depend_on_the_seed_and_the_layer() -> None:
    system = tiny_system()
    first, again, other = (masks(system, [create("random-weights", sparsity=0.5, seed=s)]) for s in (0, 0, 1))
    names = [site.name for site in prunable(system) if site.role in ("k_proj", "v_proj")]
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert all(not torch.equal(first[n], other[n]) for n in first)
    assert len({first[n].numpy().tobytes() for n in names}) == len(names)


# -- the way back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_after_an_exception(method: str, dtype: torch.dtype) -> None:
    system = tiny_system("llama", dtype=dtype)
    bits, memory = weights(system), {n: p.data_ptr() for n, p in system.model.named_parameters()}
    dense = logits(system)
    with pytest.raises(KeyError), attached(system, [create(method, sparsity=0.5)], calibration()):
        assert not torch.equal(logits(system), dense)
        raise KeyError
    assert {n: p.data_ptr() for n, p in system.model.named_parameters()} == memory
    assert all(torch.equal(p, bits[n]) for n, p in system.model.named_parameters())
    assert torch.equal(logits(system), dense)
    assert system.model.lm_head.weight is system.model.model.embed_tokens.weight


def test_weights_come_back_when_preparing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    system = tiny_system()
    bits = weights(system)
    wanda = create("wanda", sparsity=0.5)
    blocks = []

    def failing(self: Any, layer: Any) -> torch.Tensor:
        blocks.append(layer.name)
        if ".2." in layer.name:
            raise KeyError
        return layer.weight.abs()

    monkeypatch.setattr(type(wanda.adapter), "score", failing)
    with pytest.raises(KeyError), attached(system, [wanda], calibration()):
        pass
    assert len(blocks) == 15  # both blocks before it were pruned
    assert all(torch.equal(p, bits[n]) for n, p in system.model.named_parameters())
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in system.model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_sparsity_is_dense(method: str, name: str) -> None:
    system = tiny_system(name, dtype=torch.bfloat16)
    dense = logits(system)
    with attached(system, [create(method, sparsity=0.0)], calibration()):
        assert torch.equal(logits(system), dense)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "dsnot"])
def test_kept_weights_keep_their_bits(method: str) -> None:
    system = tiny_system("gpt2", dtype=torch.bfloat16)
    before = {site.name: site.weight.detach().clone() for site in prunable(system)}
    with attached(system, [create(method, sparsity=0.5)], calibration()):
        for site in prunable(system):
            assert site.weight.dtype == torch.bfloat16
            assert torch.equal(site.weight, before[site.name].masked_fill(site.weight == 0, 0))


def test_weights_that_two_layers_share_are_pruned_once() -> None:
    system = tiny_system()
    first, second = system.model.model.layers[0], system.model.model.layers[2]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    assert len(prunable(system)) == len(system.linears) - 1
    with attached(system, [create("wanda", sparsity=0.5)], calibration()):
        assert weight_sparsity(system).sparsity == 0.5
        assert second.mlp.up_proj.weight is first.mlp.up_proj.weight


# -- statistics --------------------------------------------------------------------------------------------------------


def all_inputs(system: Any, text: Calibration, names: set[str]) -> dict[str, torch.Tensor]:
    """Inputs of layers over the whole text, [tokens, in], by the plainest way: everything is kept."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    modules = dict(system.model.named_modules())

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    with torch.no_grad():
        system.model(torch.from_numpy(text.ids.copy()))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def assert_statistics(found: InputStatistics, x: torch.Tensor) -> None:
    assert found.tokens == len(x)
    torch.testing.assert_close(found.norm, x.norm(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, x.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, x.var(dim=0, unbiased=False), rtol=1e-3, atol=1e-5)
    if found.gram is not None:
        torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_statistics(name: str) -> None:
    system, text = tiny_system(name, batch_tokens=60), calibration(5, 24)  # batches of 2, 2 and 1
    found = dense_statistics(system, text, gram=True)
    expected = all_inputs(system, text, set(found))
    assert set(found) == {site.name for site in prunable(system)}
    for key, x in expected.items():
        assert_statistics(found[key], x)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sequential_pass_against_running_the_whole_model(name: str) -> None:
    """Wanda block by block, the plain way: for each block the whole model is run, pruned as far as it is."""
    system, text = tiny_system(name, batch_tokens=60), calibration(5, 30)  # longer than the sliding windows
    dense = weights(system)
    for index in range(len(system.blocks)):
        sites = [site for site in system.linears if site.block == index]
        inputs = all_inputs(system, text, {site.name for site in sites})
        for site in sites:
            weight = site.weight.detach()
            score = weight.abs() * inputs[site.name].norm(dim=0)
            order = score.sort(dim=1, stable=True).indices[:, : weight.shape[1] // 2]
            weight.scatter_(1, order, 0)
    expected = {site.name: site.weight.detach() == 0 for site in system.linears}
    with torch.no_grad():
        for key, parameter in system.model.named_parameters():
            parameter.copy_(dense[key])
    found = masks(system, [create("wanda", sparsity=0.5)], text)
    differing = sum(int((found[key] != expected[key]).sum()) for key in expected)
    assert differing <= 4  # near ties of scores that were summed in another order


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_blocks_run_no_further_than_their_last_input(name: str) -> None:
    """Statistics are the same, and after the first batch the last layer of a block is not run for them."""
    system, text = tiny_system(name, batch_tokens=24), calibration()
    found: dict[str, InputStatistics] = {}
    block_by_block(system, text, lambda site, inputs: found.update({site.name: inputs}), gram=True)
    dense = dense_statistics(system, text, gram=True)  # nothing is pruned, so blocks are fed as in the dense model
    assert found.keys() == dense.keys()
    for key, inputs in found.items():
        assert inputs.tokens == text.tokens
        torch.testing.assert_close(inputs.gram, dense[key].gram, rtol=1e-4, atol=1e-4)
    last = prunable(system)[-1].module
    runs = []
    handle = last.register_forward_hook(lambda module, args, out: runs.append(1))
    block_by_block(system, text, lambda site, inputs: None)
    handle.remove()
    assert len(runs) == 1


def test_what_preparing_takes_is_measured() -> None:
    system, text = tiny_system(), calibration()
    with attached(system, [create("wanda", sparsity=0.5), create("magnitude", sparsity=0.6)], text) as (_, prepared):
        taken = [one.peak_bytes for one in prepared]
    assert taken[0] is None or taken[0] >= 0
    assert taken[1] is None  # it prepares nothing


def test_sequential_is_dense_on_the_first_block_only() -> None:
    system, text = tiny_system(), calibration()
    sequential = masks(system, [create("wanda", sparsity=0.5)], text)
    dense = masks(system, [create("wanda", sparsity=0.5, stats_pass="dense")], text)
    first = [site.name for site in system.linears if site.block == 0]
    assert all(torch.equal(sequential[name], dense[name]) for name in first)
    rest = [name for name in dense if name not in first]
    assert sum(not torch.equal(sequential[name], dense[name]) for name in rest) > len(rest) // 2


def test_batches_change_nothing() -> None:
    text = calibration(6, 20)
    found = [
        masks(tiny_system(batch_tokens=tokens), [create("wanda", sparsity=0.5)], text) for tokens in (20, 70, 1000)
    ]
    for other in found[1:]:
        assert sum(int((found[0][n] != other[n]).sum()) for n in other) <= 4


def test_dense_statistics_are_remembered_for_the_same_weights() -> None:
    system, text = tiny_system(), calibration()
    first = dense_statistics(system, text)
    assert dense_statistics(system, text) is first
    assert dense_statistics(system, calibration(seed=1)) is not first
    with attached(system, [create("magnitude", sparsity=0.5)]):
        pruned = dense_statistics(system, text)
    assert not torch.equal(pruned["model.layers.1.mlp.up_proj"].norm, first["model.layers.1.mlp.up_proj"].norm)
    assert dense_statistics(system, text) is first
    handle = system.model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    assert dense_statistics(system, text) is not first
    handle.remove()


def test_a_stack_prepares_later_members_on_earlier_ones() -> None:
    system, text = tiny_system(), calibration()
    stack = [create("magnitude", sparsity=0.5, compare_group="row"), create("wanda", sparsity=0.5, stats_pass="dense")]
    with attached(system, stack, text):
        assert weight_sparsity(system).sparsity == 0.5  # what is zero already goes first
        inputs = all_inputs(system, text, {"model.layers.1.mlp.up_proj"})
    with attached(system, stack[:1], text), attached(system, stack[1:], text) as (_, prepared):
        statistics = prepared[0].state.statistics["model.layers.1.mlp.up_proj"]
    assert_statistics(statistics, inputs["model.layers.1.mlp.up_proj"])


def test_models_that_call_blocks_otherwise_are_refused() -> None:
    system = tiny_system()
    system.blocks.reverse()
    with pytest.raises(InputError, match="does not call its blocks once each"):
        block_by_block(system, calibration(), lambda site, inputs: None)


# -- knobs and budgets -------------------------------------------------------------------------------------------------


def test_bad_knobs_and_budgets() -> None:
    with pytest.raises(InputError, match="must be 'dense'"):
        create("wanda", sparsity=0.5, compare_group="global")
    with pytest.raises(InputError, match="ratios must be 'uniform'"):
        create("magnitude", sparsity=0.5, compare_group="global", ratios="erk")
    with pytest.raises(InputError, match="reads a calibration text"):
        create("magnitude", sparsity=0.5, ratios="owl")
    with pytest.raises(InputError, match="prunes all layers alike"):
        create("wanda", pattern="2:4", ratios="erk")
    with pytest.raises(UnknownNameError, match="stats_pas"):
        create("wanda", sparsity=0.5, stats_pas="dense")
    with pytest.raises(InputError, match="block"):
        create("sparsegpt", sparsity=0.5, compare_group="row")
    with (
        pytest.raises(InputError, match="reads a calibration text"),
        attached(tiny_system(), [create("wanda", sparsity=0.5)]),
    ):
        pass


def test_a_sequential_pass_belongs_to_its_budget() -> None:
    system, text = tiny_system(), calibration()
    wanda, other = create("wanda", sparsity=0.5), create("wanda", sparsity=0.6)
    assert wanda.adapter.prepare_depends_on_budget()
    assert not create("wanda", sparsity=0.5, stats_pass="dense").adapter.prepare_depends_on_budget()
    prepared = wanda.adapter.prepare(system, text, wanda.budget)
    with pytest.raises(InputError, match="prepared at 50%"), wanda.adapter.attach(system, prepared, other.budget):
        pass


def test_cache_prepares_dense_statistics_once_for_all_budgets() -> None:
    system, text = tiny_system(), calibration()
    cache: dict[str, Any] = {}
    for sparsity in (0.2, 0.5):
        with attached(system, [create("wanda", sparsity=sparsity, stats_pass="dense")], text, cache):
            assert weight_sparsity(system).sparsity == pytest.approx(sparsity, abs=0.02)
    assert len(cache) == 1
    for sparsity in (0.2, 0.5):
        with attached(system, [create("wanda", sparsity=sparsity)], text, cache):
            assert weight_sparsity(system).sparsity == pytest.approx(sparsity, abs=0.02)
    assert len(cache) == 3


@pytest.mark.parametrize("ratios", ["erk", "owl"])
def test_layer_ratios_meet_the_target(ratios: str) -> None:
    system = tiny_system()
    with attached(system, [create("wanda", sparsity=0.5, ratios=ratios)], calibration()):
        assert weight_sparsity(system).sparsity == pytest.approx(0.5, abs=0.01)
        shares = {float((site.weight == 0).float().mean()) for site in prunable(system)}
    assert len(shares) > 1


def test_facts_are_plain_and_name_the_text() -> None:
    system, text = tiny_system(dtype=torch.bfloat16), calibration()
    with attached(system, [create("wanda", sparsity=0.5, ratios="owl")], text) as (_, (prepared,)):
        facts = json.loads(json.dumps(prepared.facts))
    assert facts["calibration"] == text.describe()
    assert facts["calibration_dtype"] == "bfloat16 forward, float32 statistics"
    assert prepared.tokens == text.tokens
    assert prepared.seconds > 0


@pytest.mark.parametrize(("budget", "bits"), [({"sparsity": 0.5}, 1.0), ({"pattern": "2:4"}, 1.0)])
def test_cost(budget: dict[str, Any], bits: float) -> None:
    system = tiny_system()
    member = create("magnitude", **budget)
    cost = member.adapter.cost(system, Request(100, 10), member.budget)
    dense = create("magnitude", sparsity=0.0)
    whole = dense.adapter.cost(system, Request(100, 10), dense.budget)
    assert cost.prefill.linear == pytest.approx(0.5 * whole.prefill.linear)
    assert cost.prefill.attention == whole.prefill.attention
    assert cost.prefill.head == whole.prefill.head
    # A kept weight has 16 bits; a bitmap adds one bit for each weight, a place in four two for each kept one.
    assert cost.decode.bytes_weights < whole.decode.bytes_weights
    size = system.shape.linear_params
    assert whole.decode.bytes_weights - cost.decode.bytes_weights == pytest.approx(10 * size * (16 - 8 - bits) / 8)


# -- a trained model ---------------------------------------------------------------------------------------------------


def story_loss(system: Any) -> float:
    losses = []
    for text in STORIES:
        ids = torch.tensor([system.tokenizer(text).input_ids])
        with torch.no_grad():
            losses.append(float(system.model(ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_scores_are_ordered_on_a_trained_model() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=12, length=96)
    losses = {}
    for method in ("random-weights", "magnitude", "wanda", "sparsegpt"):
        knobs = {} if method in ("wanda", "sparsegpt") else {"compare_group": "row"}
        with attached(system, [create(method, sparsity=0.4, **knobs)], text):
            losses[method] = story_loss(system)
    dense = story_loss(system)
    assert dense < losses["sparsegpt"] < losses["wanda"] < losses["magnitude"] < losses["random-weights"], losses
