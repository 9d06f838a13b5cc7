"""Experts that lie in one tensor: each projection is a linear layer, seen, counted and put back as any other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import transformers as hf
from models import GROUPED, MIXTURES, tiny_system, tiny_tokenizer

from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.experts import exposed
from sparsebench.systems.weights import out_of_reach, prunable, put, restoring, weight_sparsity

FORMS = [*MIXTURES, "llama4", "jamba"]


def jetmoe() -> CausalLM:
    """Experts in attention too, and tokens that come to them sorted."""
    torch.manual_seed(0)
    config = hf.JetMoeConfig(
        **{**GROUPED, "num_key_value_heads": 2}, kv_channels=12, num_local_experts=4, num_experts_per_tok=2
    )
    return CausalLM(hf.AutoModelForCausalLM.from_config(config), tiny_tokenizer(), ref="memory:jetmoe")


def system_of(name: str) -> CausalLM:
    return jetmoe() if name == "jetmoe" else tiny_system(name)


def logits(system: CausalLM, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: torch.Tensor = system.model(ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", [*FORMS, "jetmoe"])
def test_every_weight_of_experts_is_that_of_a_layer(name: str) -> None:
    system = system_of(name)
    sites = [site for site in system.linears if site.expert is not None]
    modules = dict(system.model.named_modules())
    owners = {id(site.owner): site.owner for site in sites}
    assert sum(site.weight.numel() for site in sites) == sum(owner.numel() for owner in owners.values())
    assert {id(p) for p in system.model.parameters() if p.dim() == 3 and p.shape[1] > 1} <= set(owners)
    assert out_of_reach(system) == []
    for site in sites:
        holder, expert, role = site.name.rsplit(".", 2)
        stack = modules[holder].get_parameter(role)[int(expert)]
        assert torch.equal(site.weight, stack.T if name in ("gpt_oss", "llama4") else stack)
        assert site.weight.data_ptr() == stack.data_ptr()
        assert site.holder is modules[holder]
    places = [system.linears.index(site) for site in sites if site.block == sites[0].block]
    assert all(b == a + 1 for a, b in pairwise(places)) or name == "jetmoe"


def test_orientation_is_out_by_in() -> None:
    """Through the first projection 48 channels become 2 x 96, whatever the storage."""
    for name in ("mixtral", "gpt_oss", "llama4"):
        shapes = {site.role: tuple(site.weight.shape) for site in tiny_system(name).linears if site.expert is not None}
        assert shapes == {"gate_up_proj": (192, 48), "down_proj": (48, 96)}


@pytest.mark.parametrize("name", [*FORMS, "jetmoe"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_exposed_experts_give_what_the_model_gives(name: str, implementation: str) -> None:
    system = system_of(name)
    if name not in ("llama4", "jetmoe"):
        system.model.set_experts_implementation(implementation)
    elif implementation != "eager":
        pytest.skip("has but one implementation")
    sites = [site for site in system.linears if site.expert is not None]
    called = dict.fromkeys((site.name for site in sites), 0)
    for site in sites:
        site.module.register_forward_hook(
            lambda module, args, out, name=site.name: called.update({name: called[name] + len(args[0])})
        )
    plain = logits(system)
    assert not any(called.values())
    with exposed(site.module for site in sites):
        assert torch.allclose(logits(system), plain, atol=1e-5)
    assert torch.equal(logits(system), plain)
    assert sum(bool(count) for count in called.values()) > len(called) / 2
    top = 1 if name == "llama4" else 2
    layers = {(site.block, site.name.split(".experts.")[0]) for site in sites}
    if name != "jetmoe":
        assert sum(called.values()) == len(layers) * 60 * top * 2  # two projections of each expert of each token


@pytest.mark.parametrize("name", [*FORMS, "jetmoe"])
def test_putting_weights_and_putting_them_back(name: str) -> None:
    system = system_of(name)
    sites = prunable(system)
    before = {n: (p.detach().clone(), p.data_ptr()) for n, p in system.model.named_parameters()}
    plain = logits(system)
    one = next(site for site in sites if site.expert == 1)
    with restoring(sites):
        put(one, torch.zeros_like(one.weight))
        assert weight_sparsity(system).zeros == one.weight.numel()
        assert not torch.equal(logits(system), plain) or name == "jamba"  # with two experts, of which one may rest
        changed = [n for n, p in system.model.named_parameters() if not torch.equal(p, before[n][0])]
        assert len(changed) == 1
    for n, parameter in system.model.named_parameters():
        assert torch.equal(parameter, before[n][0])
        assert parameter.data_ptr() == before[n][1]


@pytest.mark.parametrize("name", MIXTURES)
def test_active_weights_are_counted_by_the_share_that_runs(name: str) -> None:
    """Of experts one is zeroed: a token meets a share of its zeros, by how many of all run."""
    system = tiny_system(name)
    share = (2 / 8) if name == "olmoe" else (2 / 4)
    sites = [site for site in prunable(system) if site.expert == 0]
    linear = sum(site.weight.numel() for site in prunable(system) if site.expert is None)
    experts = sum(site.weight.numel() for site in prunable(system) if site.expert is not None)
    with restoring(sites):
        for site in sites:
            put(site, torch.zeros_like(site.weight))
        found = weight_sparsity(system)
    gone = sum(site.weight.numel() for site in sites)
    assert (found.prunable, found.zeros) == (linear + experts, gone)
    assert found.active is not None
    assert (found.active.prunable, found.active.zeros) == (linear + share * experts, share * gone)
    ends = ("gate.weight", "router.weight")
    routers = sum(p.numel() for n, p in system.model.named_parameters() if n.endswith(ends))
    assert system.shape.linear_params == found.active.prunable + routers


def test_models_without_experts_have_none() -> None:
    for name in ("llama", "gpt2", "mamba", "lfm2", "rwkv"):
        system = tiny_system(name)
        assert system.experts == out_of_reach(system) == []
        assert weight_sparsity(system).active is None
