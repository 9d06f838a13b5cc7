"""Activation methods against naive forms of them, written from the papers and their released code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_system
from torch.nn.functional import linear, silu

from sparsebench.adapters import attached, create
from sparsebench.adapters.activation import _greedy
from sparsebench.adapters.activation._rotation import groups, rotated
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine.scoring import Scored, score


def text(sequences: int = 6, length: int = 40, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


# -- neurons of a prompt -----------------------------------------------------------------------------------------------


def griffin_neurons(z: torch.Tensor, keep: int) -> torch.Tensor:
    """`z` is [tokens, neurons]: the norm over tokens of each token's neurons over their norm."""
    return (z / z.norm(dim=1, keepdim=True)).norm(dim=0).topk(keep).indices


def core_neurons(z: torch.Tensor, keep: int) -> torch.Tensor:
    """The neurons that are most often among the largest 40 % of a token's positive ones."""
    counts: Counter[int] = Counter()
    for token in z:
        positive = [(float(v), j) for j, v in enumerate(token) if v > 0]
        positive.sort(reverse=True)
        counts.update(j for _, j in positive[: round(0.4 * len(positive))])
    # Of equals the later neuron stays.
    order = sorted(range(z.shape[1]), key=lambda j: (counts[j], j), reverse=True)
    return torch.tensor(order[:keep])


def sliced(system: Any, choose: Callable[[torch.Tensor, int], torch.Tensor], keep: int, prompt: int) -> None:
    """Give each MLP of a Llama a form that chooses neurons from the first `prompt` tokens and slices its weights."""
    for layer in system.model.model.layers:

        def forward(x: torch.Tensor, mlp: Any = layer.mlp) -> torch.Tensor:
            z = silu(mlp.gate_proj(x)) * mlp.up_proj(x)
            kept = choose(z[0, :prompt], keep)
            gate, up, down = mlp.gate_proj.weight[kept], mlp.up_proj.weight[kept], mlp.down_proj.weight[:, kept]
            rest = linear(silu(linear(x[:, prompt:], gate)) * linear(x[:, prompt:], up), down)
            return torch.cat([mlp.down_proj(z[:, :prompt]), rest], dim=1)

        layer.mlp.forward = forward


@pytest.mark.parametrize(("method", "choose"), [("griffin", griffin_neurons), ("coreinfer", core_neurons)])
def test_neurons_of_a_prompt(method: str, choose: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    system, plain = tiny_system(), tiny_system()
    tokens = np.random.default_rng(2).integers(0, 256, 30).tolist()
    sliced(plain, choose, keep=96 - 58, prompt=17)  # 60 % of 96 neurons, 57.6, go
    with torch.no_grad():
        logprobs = torch.log_softmax(plain.model(torch.tensor([tokens[:-1]])).logits[0], dim=-1)
    expected = logprobs[torch.arange(29), torch.tensor(tokens[1:])]
    with attached(system, [create(method, sparsity=0.6)]):
        (found,) = score(system, [Scored(tokens, 29, 17)])
    np.testing.assert_allclose(found.logprobs, expected.numpy(), atol=1e-4)


# -- thresholds --------------------------------------------------------------------------------------------------------


def watched_mlp(system: Any, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate activations and up projections of a Llama's layer, [tokens, neurons] each."""
    seen: list[torch.Tensor] = []
    mlp = system.model.model.layers[layer].mlp
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].reshape(-1, 48)))
    with torch.no_grad():
        system.model(ids)
        handle.remove()
        return silu(mlp.gate_proj(seen[0])), mlp.up_proj(seen[0])


@pytest.mark.parametrize("moment", ["mean", "square"])
def test_chess(moment: str) -> None:
    system, calibration = tiny_system(), text()
    layer = system.model.model.layers[1]
    gate, up = watched_mlp(system, torch.from_numpy(calibration.ids.copy()), 1)
    usual = up.abs().mean(dim=0) if moment == "mean" else up.square().mean(dim=0).sqrt()
    cut = float(torch.quantile((gate.abs() * usual).flatten(), 0.6))
    x, attention = torch.randn(1, 9, 48), layer.self_attn
    member = create("chess", sparsity=0.6, moment=moment)
    with attached(system, [member], calibration) as (_, (prepared,)), torch.no_grad():
        state = prepared.state
        torch.testing.assert_close(state.learned["block 1.mlp.act_fn"], usual, rtol=1e-4, atol=1e-6)
        assert state.distributions["block 1.mlp.act_fn"].threshold(0.6) == pytest.approx(cut, rel=0.01)
        found = layer.mlp(x), attention.q_proj(x), attention.k_proj(x), attention.o_proj(x)
    own = {name: d.threshold(0.6) for name, d in state.distributions.items()}
    with torch.no_grad():
        gate, up = silu(layer.mlp.gate_proj(x)), layer.mlp.up_proj(x)
        # A threshold for each neuron: what cuts the product at one number, over the usual size of the other factor.
        kept = torch.where(gate.abs() > own["block 1.mlp.act_fn"] / usual, gate, 0)
        expected = [layer.mlp.down_proj(kept * up)]
        for name, module in (("q_proj", attention.q_proj), ("", attention.k_proj), ("o_proj", attention.o_proj)):
            cut = own.get(f"model.layers.1.self_attn.{name}", -1.0)
            expected.append(module(torch.where(x.abs() > cut, x, 0)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not any(name.endswith(("k_proj", "v_proj", "down_proj")) for name in own)


def test_chess_may_leave_attention_dense() -> None:
    system = tiny_system("phi3")
    sites = {
        mode: create("chess", sparsity=0.5, attention=mode).adapter.sites(system) for mode in ("dense", "selective")
    }  # type: ignore[attr-defined]
    assert [len(found) for found in sites.values()] == [3, 6]
    assert {site.name.rsplit(".", 1)[-1] for site in sites["selective"][3:]} == {"o_proj"}


@pytest.mark.parametrize(("name", "layer"), [("llama", "mlp.down_proj"), ("gpt2", "attn.c_attn"), ("opt", "fc1")])
def test_r_sparse(name: str, layer: str) -> None:
    """W (x m) + U_r S_r V_r^T (x (1 - m)), with a bias where the layer has one."""
    system = tiny_system(name)
    (site,) = [site for site in system.linears if site.name.endswith(f".1.{layer}")]
    outputs, channels = site.weight.shape
    x = torch.randn(1, 11, channels)
    with attached(system, [create("r-sparse", sparsity=0.4, channel_share=0.7, scope="all")], text()) as (_, prepared):
        with torch.no_grad():
            found = site.module(x)
        cut = prepared[0].state.distributions[site.name].threshold(1 - 0.6 * 0.7)
    rank = int(0.6 * 0.3 * outputs * channels / (outputs + channels))
    weight = site.weight.detach().double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    low_rank = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
    large = (x.double().abs() * weight.norm(dim=0)) > cut
    expected = (x * large).double() @ weight.T + (x * ~large).double() @ low_rank.T
    bias = getattr(site.module, "bias", None)
    expected = expected if bias is None else expected + bias.detach()
    assert rank > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    # Without components it is a threshold on |x| alone.
    with attached(system, [create("r-sparse", sparsity=0.4, channel_share=1, scope="all")], text()) as (_, prepared):
        with torch.no_grad():
            found = site.module(x)
            cut = prepared[0].state.distributions[site.name].threshold(0.4)
    with torch.no_grad():
        torch.testing.assert_close(found, site.module(torch.where(x.abs() > cut, x, 0)))


def test_components_help() -> None:
    """Of a weight of low rank everything passes through the components, whatever channels go."""
    system = tiny_system()
    down = system.model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        down.weight.copy_(torch.randn(48, 2) @ torch.randn(2, 96))
        x = torch.randn(1, 8, 96)
        dense = down(x)
        with attached(system, [create("r-sparse", sparsity=0.7, channel_share=0.7, scope="all")], text()):
            torch.testing.assert_close(down(x), dense, rtol=1e-4, atol=1e-4)


# -- the transform -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "qwen2", "phi3", "gemma2", "bloom"])
def test_turned_models_have_orthogonal_columns_and_say_the_same(name: str) -> None:
    system = tiny_system(name, dtype=torch.float64)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        dense = system.model(ids).logits
        before = [group.basis.weight.detach().clone() for group in groups(system)]
        with rotated(system):
            torch.testing.assert_close(system.model(ids).logits, dense, rtol=1e-9, atol=1e-9)
            for group, own in zip(groups(system), before, strict=True):
                product = group.basis.weight.T @ group.basis.weight
                assert float((product - torch.diag(product.diagonal())).abs().max()) < 1e-9
                values = torch.linalg.svdvals(own)
                torch.testing.assert_close(product.diagonal()[: len(values)], values.square())
        assert torch.equal(system.model(ids).logits, dense)


def test_wina_with_the_transform() -> None:
    """Each layer of a group reads V^T x, masked by the norms of the columns of its own W V."""
    system = tiny_system()
    attention = system.model.model.layers[1].self_attn
    weights = {name: getattr(attention, name).weight.detach().clone() for name in ("q_proj", "k_proj", "v_proj")}
    x = torch.randn(1, 7, 48)
    with attached(system, [create("wina", sparsity=0.5, transform=True, scope="all")]), torch.no_grad():
        found = {name: getattr(attention, name)(x) for name in weights}
    turn = torch.linalg.svd(weights["k_proj"].double(), full_matrices=True).Vh.T
    for name, weight in weights.items():
        turned, inputs = weight.double() @ turn, x[0].double() @ turn
        worth = inputs.abs() * turned.norm(dim=0)
        kept = torch.zeros_like(inputs).scatter(1, worth.topk(24, dim=1).indices, 1)
        torch.testing.assert_close(found[name][0].double(), (inputs * kept) @ turned.T, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(getattr(attention, name).weight, weight) for name, weight in weights.items())


# -- greedy allocation -------------------------------------------------------------------------------------------------


def test_greedy_allocation_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, one step at a time to the projection that then changes the block's output least."""
    monkeypatch.setattr(_greedy, "STEP", 0.5)
    system, calibration = tiny_system(), text(3, 32)
    # A step is half of the query projection, 1152 weights, a eighteenth of a block's 20736.
    with attached(system, [create("teal", sparsity=1 / 3, allocation="greedy", scope="all")], calibration) as (_, left):
        levels, distributions = left[0].state.levels, left[0].state.distributions
    for index, layer in enumerate(system.model.model.layers):
        own = {site.name: site.module for site in system.linears if site.block == index}
        calls: list[tuple[Any, Any]] = []
        handle = layer.register_forward_pre_hook(
            lambda m, args, kw, calls=calls: calls.append((args, kw)), with_kwargs=True
        )
        with torch.no_grad():
            system.model.model(torch.from_numpy(calibration.ids.copy()), use_cache=False)
        handle.remove()
        assert levels is not None
        expected = naive_greedy(layer, own, calls[0], distributions, steps=6)
        assert {name: levels[name] for name in own} == pytest.approx(expected), index


def test_greedy_allocation_for_decode_measures_what_would_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is read as a prompt, where a method of decode would change nothing and one step be as good as another."""
    monkeypatch.setattr(_greedy, "STEP", 0.5)
    found = []
    for scope in ("decode", "last-half"):
        system = tiny_system()
        with attached(system, [create("teal", sparsity=0.3, allocation="greedy", scope=scope)], text(3, 32)) as (
            _,
            left,
        ):
            found.append(left[0].facts["levels"])
    assert found[0] == found[1]
    assert max(found[0].values()) < 0.99


def naive_greedy(
    layer: Any, modules: dict[str, Any], call: tuple[Any, Any], distributions: Any, steps: int
) -> dict[str, float]:
    sizes = {name: module.weight.numel() for name, module in modules.items()}
    step = 0.5 * next(iter(sizes.values()))

    def output(levels: dict[str, float]) -> torch.Tensor:
        handles = []
        for name, module in modules.items():
            cut = distributions[name].threshold(levels[name])
            handles.append(module.register_forward_pre_hook(lambda m, a, cut=cut: (a[0] * (a[0].abs() > cut),)))
        args, options = call
        with torch.no_grad():
            out = layer(*args, **options)
        for handle in handles:
            handle.remove()
        return out[0] if isinstance(out, tuple) else out

    levels = dict.fromkeys(modules, 0.0)
    dense = output(levels)
    for _ in range(steps):
        errors = {}
        for name in modules:
            raised = {**levels, name: levels[name] + step / sizes[name]}
            if raised[name] < 1:
                errors[name] = float(torch.norm((output(raised) - dense)[:, 24:], dim=1).mean())
        best = min(errors, key=lambda name: errors[name])
        levels[best] += step / sizes[best]
    return levels
