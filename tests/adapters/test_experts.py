"""Methods on mixtures of experts: each expert's projections are layers, fed the tokens that are routed to the expert."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from models import GROUPED, MIXTURES, tiny_system, tiny_tokenizer

from sparsebench.account import Counted, account
from sparsebench.adapters import attached, create
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import InputStatistics, block_by_block, dense_statistics
from sparsebench.adapters.pruning._groups import rounded
from sparsebench.cost import Request
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.realised import _storage
from sparsebench.systems.causal_lm import CausalLM, LinearSite
from sparsebench.systems.weights import prunable, weight_sparsity

FORMS = [*MIXTURES, "llama4"]
MASKS = ("magnitude", "random-weights", "wanda", "wanda-variant", "sparsegpt", "dsnot")


def calibration(sequences: int = 4, length: int = 40, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


def logits(system: CausalLM) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 256, (2, 30)))
    with torch.no_grad():
        found: torch.Tensor = system.model(ids, use_cache=False).logits
    return found


def state_of(system: CausalLM) -> dict[str, Any]:
    """All that a method may have changed."""
    return {
        "memory": {name: p.data_ptr() for name, p in system.model.named_parameters()},
        "own": {name: sorted(vars(m)) for name, m in system.model.named_modules()},
        "hooks": [name for name, m in system.model.named_modules() if m._forward_hooks or m._forward_pre_hooks],
        "expert hooks": [s.name for s in system.linears if s.module._forward_hooks or s.module._forward_pre_hooks],
        "stored": system.stored,
        "implementation": system.model.config._experts_implementation,
    }


# -- what is pruned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", MASKS)
def test_density_asked_is_density_counted(name: str, method: str) -> None:
    """Counted in the model's own parameters, of experts and all other layers."""
    system, asked = tiny_system(name), 0.375  # of 32, 48 and 96 inputs a whole number
    owners = {id(site.owner): site.owner for site in prunable(system)}.values()
    with attached(system, [create(method, sparsity=asked)], calibration()):
        for site in prunable(system):
            gone = int((site.weight == 0).sum())
            assert gone == pytest.approx(asked * site.weight.numel(), rel=2e-3), site.name
            if method in ("wanda", "dsnot"):
                assert bool(((site.weight == 0).sum(dim=1) == rounded(asked, site.weight.shape[1])).all())
        zeros = sum(int((owner == 0).sum()) for owner in owners)
        found = weight_sparsity(system)
        assert bool(logits(system).isfinite().all())
    whole = sum(owner.numel() for owner in owners)
    assert (found.zeros, found.prunable) == (zeros, whole)
    assert found.sparsity == pytest.approx(asked, abs=1e-3)
    assert found.active is not None
    assert found.active.sparsity == pytest.approx(asked, abs=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_one_group_over_all_experts_and_layers(name: str) -> None:
    system = tiny_system(name)
    with attached(system, [create("magnitude", sparsity=0.5, compare_group="global")]):
        found = weight_sparsity(system)
        masks = {site.name: site.weight == 0 for site in prunable(system)}
    assert found.zeros == rounded(0.5, found.prunable)
    gone = torch.cat([site.weight.detach()[masks[site.name]].abs() for site in prunable(system)])
    kept = torch.cat([site.weight.detach()[~masks[site.name]].abs() for site in prunable(system)])
    assert float(gone.max()) <= float(kept.min())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4"])
def test_a_pattern_is_along_the_inputs(name: str) -> None:
    system = tiny_system(name)
    with attached(system, [create("wanda", pattern="2:4")], calibration()):
        for site in prunable(system):
            grouped = (site.weight == 0).reshape(len(site.weight), -1, 4).sum(dim=2)
            assert bool((grouped == 2).all()), site.name


# -- what experts are fed ----------------------------------------------------------------------------------------------


def by_hand(system: CausalLM, text: Calibration) -> dict[str, torch.Tensor]:
    """What each expert's projections are fed, [tokens, in], from the arguments of the modules that hold them."""
    fed: dict[str, list[torch.Tensor]] = defaultdict(list)

    def neurons(module: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
        if type(module).__name__ == "GptOssExperts":
            both = x @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
            gate, up = both[:, ::2].clamp(max=module.limit), both[:, 1::2].clamp(-module.limit, module.limit)
            return (up + 1) * gate * torch.sigmoid(gate * module.alpha)
        matrix = module.gate_up_proj[expert]
        gate, up = (x @ (matrix if type(module).__name__ == "Llama4TextExperts" else matrix.T)).chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            for expert in range(len(module.down_proj)):
                if len(args) == 1:  # Llama 4: hidden states for each expert, zeros where a token is routed elsewhere
                    x = args[0].reshape(len(module.down_proj), -1, args[0].shape[1])[expert]
                    x = x[(x != 0).any(dim=1)]
                else:
                    x = args[0][(args[1] == expert).any(dim=1)]
                fed[f"{name}.{expert}.gate_up_proj"].append(x)
                fed[f"{name}.{expert}.down_proj"].append(neurons(module, expert, x))

        return hook

    modules = system.model.named_modules()
    handles = [m.register_forward_pre_hook(hook_of(n)) for n, m in modules if n.endswith(".experts")]
    with torch.no_grad():
        for row in torch.from_numpy(text.ids.copy()):
            system.model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in fed.items()}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_statistics_are_of_the_routed_tokens(name: str, implementation: str) -> None:
    system, text = tiny_system(name, batch_tokens=90), calibration(5, 40)  # batches of 2, 2 and 1
    if name != "llama4":
        system.model.set_experts_implementation(implementation)
    expected = by_hand(system, text)
    found = dense_statistics(system, text, gram=True)
    assert set(expected) == {site.name for site in system.linears if site.expert is not None}
    for key, x in expected.items():
        assert found[key].tokens == len(x)
        torch.testing.assert_close(found[key].norm, x.norm(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[key].gram, x.T @ x, rtol=1e-3, atol=1e-4)
    first = next(iter(expected)).rsplit(".", 2)[0]
    met = [len(x) for key, x in expected.items() if key.startswith(f"{first}.") and key.endswith("down_proj")]
    assert sum(met) == text.tokens * (1 if name == "llama4" else 2)


@pytest.mark.parametrize("name", FORMS)
def test_wanda_is_wanda_by_hand(name: str) -> None:
    """|W_ij| times the norm of input j over the tokens routed to the expert; the lower half of each row goes."""
    system, text = tiny_system(name), calibration(8, 40)
    expected = {}
    for key, x in by_hand(system, text).items():
        site = next(site for site in system.linears if site.name == key)
        worth = site.weight.detach().abs() * x.norm(dim=0)
        expected[key] = torch.zeros_like(worth, dtype=torch.bool).scatter_(
            1, worth.sort(dim=1, stable=True).indices[:, : worth.shape[1] // 2], True
        )
    with attached(system, [create("wanda", sparsity=0.5, stats_pass="dense")], text):
        found = {site.name: site.weight == 0 for site in system.linears if site.expert is not None}
    assert found.keys() == expected.keys()
    assert sum(int((found[key] != expected[key]).sum()) for key in expected) <= 4  # near ties


@pytest.mark.parametrize("name", FORMS)
def test_a_pass_block_by_block_feeds_experts_by_what_is_pruned_before_them(name: str) -> None:
    """The pass against the statistics of the whole model, which has been pruned up to the block."""
    text, pruned = calibration(6, 40), tiny_system(name)
    found: dict[str, InputStatistics] = {}
    steps: list[tuple[LinearSite, torch.Tensor]] = []
    system = tiny_system(name, batch_tokens=90)

    def prune(site: LinearSite, inputs: InputStatistics) -> None:
        from sparsebench.systems.weights import put

        found[site.name] = inputs
        weight = site.weight.detach().clone()
        weight[:, ::3] = 0
        put(site, weight)
        steps.append((site, weight))

    block_by_block(system, text, prune)
    for index in range(len(system.blocks)):
        whole = dense_statistics(pruned, text)
        for site in (site for site in prunable(pruned) if site.block == index):
            assert found[site.name].tokens == whole[site.name].tokens, site.name
            torch.testing.assert_close(found[site.name].norm, whole[site.name].norm, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for site in (site for site in prunable(pruned) if site.block == index):
                site.weight[:, ::3] = 0


# -- experts that no token reaches -------------------------------------------------------------------------------------


def sparse_mixture(name: str = "mixtral") -> CausalLM:
    """Sixteen experts, of which four tokens can reach at most eight."""
    config = {
        "mixtral": hf.MixtralConfig(**GROUPED, num_local_experts=16, num_experts_per_tok=2),
        "gpt_oss": hf.GptOssConfig(**GROUPED, head_dim=16, num_local_experts=16, num_experts_per_tok=2),
    }[name]
    torch.manual_seed(0)
    return CausalLM(hf.AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), ref=f"memory:{name}")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("stats_pass", ["dense", "sequential"])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude(name: str, stats_pass: str) -> None:
    system, text = sparse_mixture(name), calibration(1, 4)
    unreached = [key for key, inputs in dense_statistics(system, text).items() if not inputs.tokens]
    assert len(unreached) >= 3 * 8 * 2
    with attached(system, [create("wanda", sparsity=0.5, stats_pass=stats_pass)], text) as (_, prepared):
        found = {site.name: site.weight == 0 for site in prunable(system)}
        facts = prepared[0].facts
    with attached(system, [create("magnitude", sparsity=0.5, compare_group="row")]):
        plain = {site.name: site.weight == 0 for site in prunable(system)}
    equal = [key for key in found if torch.equal(found[key], plain[key])]
    if stats_pass == "dense":
        assert equal == unreached
        assert facts["layers_without_tokens"] == len(unreached)
    else:  # in later blocks other tokens may reach other experts
        first = [key for key in unreached if ".layers.0." in key]
        assert [key for key in equal if ".layers.0." in key] == first
        assert facts["layers_without_tokens"] >= 3 * 8 * 2


def test_with_a_reader_for_every_expert_nothing_is_noted() -> None:
    system = tiny_system("mixtral")
    with attached(system, [create("wanda", sparsity=0.5)], calibration()) as (_, prepared):
        assert "layers_without_tokens" not in prepared[0].facts


READERS: dict[str, dict[str, Any]] = {
    "wanda": {"sparsity": 0.5},
    "wanda owl": {"sparsity": 0.5, "ratios": "owl"},
    "wanda ecoflap": {"sparsity": 0.5, "ratios": "ecoflap"},
    "evopress": {"sparsity": 0.5, "generations": 2, "offspring": 3, "tokens": (4, 8)},
    "wanda global": {"sparsity": 0.5, "compare_group": "global", "stats_pass": "dense"},
    "wanda-variant": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "sparsegpt 2:4": {"pattern": "2:4"},
    "dsnot": {"sparsity": 0.5, "refine": "all"},
    "random-allocation": {"sparsity": 0.5},
    "rtn": {"bits": 4},
    "gptq": {"bits": 4},
    "gqsa": {"sparsity": 0.5},
    "squeezellm": {"bits": 4},
    "welore": {"sparsity": 0.3},
}


@pytest.mark.parametrize("case", READERS)
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_few_tokens_break_no_method(name: str, case: str) -> None:
    """Most experts have one token or none; what comes of it is finite, changes every expert, and is undone."""
    system, text = sparse_mixture(name), calibration(2, 4)
    dense, before = logits(system), state_of(system)
    bits = {key: p.detach().clone() for key, p in system.model.named_parameters()}
    member = create(case.split()[0], **READERS[case])
    originals = {site.name: site.weight.detach().clone() for site in prunable(system)}
    with pytest.raises(KeyError), attached(system, [member], text):
        assert all(bool(site.weight.isfinite().all()) for site in prunable(system))
        same = [site.name for site in prunable(system) if torch.equal(site.weight, originals[site.name])]
        assert not same or case in ("welore", "random-allocation", "evopress")
        assert bool(logits(system).isfinite().all())
        raise KeyError
    assert state_of(system) == before
    assert all(torch.equal(p, bits[key]) for key, p in system.model.named_parameters())
    assert torch.equal(logits(system), dense)


def test_steps_of_a_search_start_from_the_same_weights() -> None:
    """Weights are perturbed both ways: the loss of W + eps z and of W - eps z, though experts are written in place."""
    from sparsebench.adapters.pruning._allocation import Settings, _slope
    from sparsebench.adapters.pruning._gradients import loss
    from sparsebench.systems.weights import put, restoring

    system, text = tiny_system("mixtral"), calibration(1, 30)
    sites = [site for site in prunable(system) if site.block == 1]
    found = _slope(system, sites, text.ids[0], Settings(noise=1e-2), seed=5)
    losses = []
    for sign in (1, -1):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad(), restoring(sites):
            for site in sites:
                put(site, site.weight + sign * 1e-2 * torch.randn(site.weight.shape, generator=generator))
            losses.append(float(loss(system, torch.from_numpy(text.ids.copy()))))
    assert found == pytest.approx(abs(losses[0] - losses[1]) / 2e-2, rel=1e-3)


def test_gradients_of_experts_are_their_own() -> None:
    from sparsebench.adapters.pruning._gradients import fisher_diagonal, loss

    for name in ("mixtral", "gpt_oss"):
        system, text = tiny_system(name), calibration(1, 30)
        found = fisher_diagonal(system, text, 1)
        owners = {id(site.owner): site.owner.requires_grad_(True) for site in prunable(system)}
        loss(system, torch.from_numpy(text.ids.copy())).backward()
        for site in prunable(system):
            gradient = owners[id(site.owner)].grad
            assert gradient is not None
            torch.testing.assert_close(found[site.name], site.part(gradient).square(), rtol=1e-4, atol=1e-12)


# -- nothing asked, and nothing left behind ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", MASKS)
def test_the_full_budget_is_dense_and_weights_come_back(name: str, method: str) -> None:
    system = tiny_system(name)
    dense, before = logits(system), state_of(system)
    bits = {key: p.detach().clone() for key, p in system.model.named_parameters()}
    with attached(system, [create(method, sparsity=0.0)], calibration()):
        assert torch.equal(logits(system), dense)
    with pytest.raises(KeyError), attached(system, [create(method, sparsity=0.5)], calibration()):
        assert not torch.equal(logits(system), dense)
        raise KeyError
    assert state_of(system) == before
    assert all(torch.equal(p, bits[key]) for key, p in system.model.named_parameters())
    assert torch.equal(logits(system), dense)


def test_members_of_a_stack_come_off_one_by_one() -> None:
    system = tiny_system("mixtral")
    bits = {key: p.detach().clone() for key, p in system.model.named_parameters()}
    stack = [create("random-weights", sparsity=0.2), create("wanda", sparsity=0.5), create("rtn", bits=4)]
    with attached(system, stack, calibration()):
        found = weight_sparsity(system)
        assert found.sparsity > 0.45
        assert all(stored.kept <= 0.6 * stored.weights for stored in found.stored)
    assert all(torch.equal(p, bits[key]) for key, p in system.model.named_parameters())


def test_bfloat16_experts() -> None:
    system = tiny_system("gpt_oss", dtype=torch.bfloat16)
    with attached(system, [create("sparsegpt", sparsity=0.5)], calibration()):
        assert {site.weight.dtype for site in prunable(system)} == {torch.bfloat16}
        assert weight_sparsity(system).sparsity == pytest.approx(0.5, abs=1e-3)
        assert bool(logits(system).isfinite().all())


# -- what it costs -----------------------------------------------------------------------------------------------------


def counted(system: CausalLM, storage: Any) -> tuple[float, float]:
    """FLOPs of a request of 30 and 5 tokens, and bytes of a decoded token."""
    sums = {
        **{"prefill.tokens": 30.0, "prefill.causal_pairs": 30 * 31 / 2, "prefill.scored": 1.0},
        **{"decode.tokens": 5.0, "decode.causal_pairs": float(sum(range(31, 36))), "decode.scored": 5.0},
    }
    shape = system.shape
    found = account(shape, Counted.of(shape, sums, "prefill"), Counted.of(shape, sums, "decode"), storage)
    flops, each = (sum(line.sparse for line in found.lines if line.unit == unit) for unit in ("flops", "bytes"))
    return flops, each


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(
    ("method", "knobs"), [("magnitude", {"sparsity": 0.375}), ("magnitude", {"pattern": "2:4"}), ("rtn", {"bits": 4})]
)
def test_predicted_cost_is_the_counted_cost(name: str, method: str, knobs: dict[str, Any]) -> None:
    system, member, request = tiny_system(name), create(method, **knobs), Request(30, 5)
    predicted = member.adapter.cost(system, request, member.budget)
    before = weight_sparsity(system)
    with attached(system, [member], calibration()):
        storage = _storage([member], (before, weight_sparsity(system)), system.shape)
    flops, each = counted(system, storage)
    assert flops == pytest.approx(predicted.whole.flops, rel=1e-3)
    windows = system.shape.windows  # the account is of all keys
    if set(windows) == {None}:
        assert each == pytest.approx(predicted.decode.bytes / 5, rel=2e-3)


def test_zeros_count_by_the_tokens_that_meet_them() -> None:
    """All experts half empty, attention whole: of a token's multiply-adds half of those in two experts of eight go."""
    system, member = tiny_system("olmoe"), create("magnitude", sparsity=0.5)
    before, shape = weight_sparsity(system), system.shape
    experts = [site for site in prunable(system) if site.expert is not None]
    attention = sum(site.weight.numel() for site in prunable(system) if site.expert is None)
    with torch.no_grad():
        for site in experts:
            site.weight[:, ::2] = 0
    storage = _storage([member], (before, weight_sparsity(system)), shape)
    active = sum(site.weight.numel() for site in experts) / 4
    routers = 3 * 8 * 48
    assert shape.linear_params == attention + active + routers
    assert storage.sparsity == pytest.approx(active / 2 / shape.linear_params)
    bits = 16 * (attention + active / 2 + routers) + (attention + active)  # with a bitmap of what is no router
    assert storage.bits == pytest.approx(bits / shape.linear_params)


# -- sparse activations ------------------------------------------------------------------------------------------------

INPUTS = ("teal", "wina", "random-activations", "r-sparse")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", INPUTS)
def test_inputs_of_experts_are_masked_and_counted(name: str, method: str) -> None:
    """A recount of what all layers, and the experts of each token, are fed behind the method's hooks."""
    system, member = tiny_system(name), create(method, sparsity=0.5, scope="all")
    dense, before = logits(system), state_of(system)
    met = defaultdict(lambda: np.zeros(2, dtype=np.int64))

    def watch(site: LinearSite) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            met[site.name] += [len(site.weight) * int((args[0] == 0).sum()), len(site.weight) * args[0].numel()]

        return hook

    with attached(system, [member], calibration()):
        system.counters.reset()
        handles = [site.module.register_forward_pre_hook(watch(site)) for site in system.linears]
        assert not torch.allclose(logits(system), dense, atol=1e-3)
        for handle in handles:
            handle.remove()
    assert sum(".experts." in key for key in met) > 4
    assert all(zeros > 0 for zeros, _ in met.values())
    sums = system.counters.sums
    zeros, total = sum(met.values())
    added = sums.get("prefill.activation.added", 0)
    assert (sums["prefill.activation.zeros"] + added, sums["prefill.activation.total"]) == (zeros, total)
    assert sums["prefill.activation.linear"] == total  # on average over experts as many run as the shape says
    assert state_of(system) == before
    assert torch.equal(logits(system), dense)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_no_activation_sparsity_is_dense(name: str) -> None:
    system = tiny_system(name)
    with attached(system, [create("random-activations", sparsity=0.0)]):
        sparse = logits(system)
    torch.testing.assert_close(sparse, logits(system), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scope", ["all", "last-half", "decode"])
@pytest.mark.parametrize("method", ["wina", "random-activations"])
def test_the_batch_does_not_decide_what_experts_are_fed(method: str, scope: str) -> None:
    found = []
    tokens = [np.random.default_rng(seed).integers(0, 256, length).tolist() for seed, length in enumerate((30, 41, 25))]
    for batch in (40, 400):
        system = tiny_system("mixtral", batch_tokens=batch)
        assert system.packed
        with attached(system, [create(method, sparsity=0.4, scope=scope)], calibration()):
            scores = score(system, [Scored(own, 8, len(own) - 10) for own in tokens])
        found.append(np.concatenate([one.logprobs for one in scores]))
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)


def test_an_expert_without_a_threshold_stays_dense() -> None:
    system = sparse_mixture()
    unreached = [key for key, inputs in dense_statistics(system, calibration(1, 4)).items() if not inputs.tokens]
    seen: dict[str, int] = {}
    with attached(system, [create("teal", sparsity=0.5, scope="all")], calibration(1, 4)):
        hooks = [
            site.module.register_forward_pre_hook(
                lambda module, args, key=site.name: seen.update({key: int((args[0] == 0).sum())})
            )
            for site in system.linears
        ]
        assert bool(logits(system).isfinite().all())
        for hook in hooks:
            hook.remove()
    assert any(key in seen for key in unreached)
    for key, zeros in seen.items():
        assert (zeros == 0) == (key in unreached)


@pytest.mark.parametrize("method", ["cats", "chess", "top-k-mlp", "griffin", "coreinfer", "sirius"])
def test_methods_of_neurons_refuse_experts(method: str) -> None:
    for name in ("mixtral", "deepseek_v3"):  # the second has MLPs of another kind beside its experts
        system = tiny_system(name)
        with (
            pytest.raises(InputError, match="does not look into the experts"),
            attached(system, [create(method, sparsity=0.5)], calibration()),
        ):
            pass


@pytest.mark.parametrize(
    ("method", "knobs", "hint"),
    [("teal", {"allocation": "greedy"}, "search"), ("wina", {"transform": True}, "not turned")],
)
def test_what_is_not_done_with_experts_is_refused(method: str, knobs: dict[str, Any], hint: str) -> None:
    with (
        pytest.raises(InputError, match=hint),
        attached(tiny_system("mixtral"), [create(method, sparsity=0.5, **knobs)], calibration()),
    ):
        pass


def test_tokens_that_cannot_be_followed_are_refused() -> None:
    config = hf.JetMoeConfig(**GROUPED, kv_channels=12, num_local_experts=4, num_experts_per_tok=2)
    system = CausalLM(hf.AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    with (
        pytest.raises(InputError, match="cannot follow tokens"),
        attached(system, [create("random-activations", sparsity=0.5)]),
    ):
        pass
    with attached(system, [create("wanda", sparsity=0.5)], calibration()):
        assert weight_sparsity(system).sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("method", ["teal", "random-activations", "cats", "griffin"])
def test_matrices_in_one_tensor_that_are_no_experts_are_refused_by_name(method: str) -> None:
    """RecurrentGemma's gates: a matrix a head."""
    with (
        pytest.raises(
            InputError, match=r"'model\.layers\.0\..*gate_weight' and \d+ more, matrices in one tensor"
        ) as raised,
        attached(tiny_system("recurrent_gemma"), [create(method, sparsity=0.5)], calibration()),
    ):
        pass
    assert "experts" not in str(raised.value).split("\n")[0]


def test_predicted_activation_cost_counts_the_experts_that_run() -> None:
    system, member = tiny_system("olmoe"), create("random-activations", sparsity=0.5)
    shape = system.shape
    predicted = member.adapter.cost(system, Request(100, 10), member.budget)
    routers = 3 * 8 * 48
    assert predicted.prefill.linear == 100 * 2 * (shape.linear_params - (shape.linear_params - routers) / 2)
