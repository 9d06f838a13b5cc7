"""What all activation methods beside the first ones keep: dense at no sparsity, the way back, rows that do not mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, tiny_system

from sparsebench.adapters import attached, create, get
from sparsebench.adapters.activation._attention import attentions
from sparsebench.adapters.activation._mlp import mlps
from sparsebench.adapters.base import Sparsity
from sparsebench.adapters.calibration import Calibration
from sparsebench.cost import Request
from sparsebench.engine.generation import Prompt, generate
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.systems.fingerprint import hash_weights

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "griffin": ("griffin", {}),
    "coreinfer": ("coreinfer", {}),
    "coreinfer by similarity": ("coreinfer", {"prediction": "similarity"}),
    "chess": ("chess", {}),
    "r-sparse": ("r-sparse", {"scope": "all", "channel_share": 0.7}),
    "wina transformed": ("wina", {"scope": "all", "transform": True}),
}
MODELS = [*ARCHITECTURES, "bloom", "falcon"]
"""The last two run in plain calls, one sequence after another."""


def member(name: str, sparsity: float) -> Sparsity:
    method, knobs = METHODS[name]
    return create(method, sparsity=sparsity, **knobs)


def text(sequences: int = 6, length: int = 40, seed: int = 0) -> Calibration:
    return Calibration("bytes", np.random.default_rng(seed).integers(0, 256, (sequences, length)), seed)


def requests(seed: int = 1) -> list[Scored]:
    """Sequences with a common beginning that is long enough to be shared, half of the rest decoded."""
    generator = np.random.default_rng(seed)
    lead = generator.integers(0, 256, 20).tolist()
    return [Scored(lead + generator.integers(0, 256, n).tolist(), n, 20 + n // 2) for n in (6, 9, 12)]


def scores(system: Any, asked: list[Scored]) -> np.ndarray:
    return np.concatenate([s.logprobs for s in score(system, asked)])


def texts(system: Any) -> list[str]:
    generator = np.random.default_rng(3)
    lead = generator.integers(0, 256, 24).tolist()
    prompts = [lead, lead[:9], [*lead[:18], 5, 6]]
    return generate(system, [Prompt(p, len(p) - 1, (), 6, frozenset()) for p in prompts])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_mix_and_the_sparsity_is_the_target(method: str, name: str) -> None:
    system, asked = tiny_system(name), requests()
    with attached(system, [member(method, 0.5)], text()):
        system.counters.reset()
        together = scores(system, asked)
        sums = dict(system.counters.sums)
        alone = np.concatenate([scores(system, [one]) for one in asked])
        system.batch_tokens = 1
        in_pieces = scores(system, asked)
    np.testing.assert_allclose(together, alone, atol=2e-4)
    np.testing.assert_allclose(together, in_pieces, atol=2e-4)
    total = sum(sums.get(f"{phase}.activation.total", 0) for phase in ("prefill", "decode"))
    zeros = sum(sums.get(f"{phase}.activation.zeros", 0) for phase in ("prefill", "decode"))
    added = sum(sums.get(f"{phase}.activation.added", 0) for phase in ("prefill", "decode"))
    turning = added if method.startswith("wina") else 0  # the budget is the paper's; turning takes its share of it
    assert (zeros + turning) / total == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_is_dense_and_the_way_back(method: str, name: str) -> None:
    system, asked = tiny_system(name, dtype=torch.bfloat16), requests()
    weights, dense, said = hash_weights(system.model), scores(system, asked), texts(system)
    with attached(system, [member(method, 0.0)], text()):
        np.testing.assert_array_equal(scores(system, asked), dense)
        assert texts(system) == said
    with pytest.raises(KeyError), attached(system, [member(method, 0.6)], text()):
        assert not np.array_equal(scores(system, asked), dense)
        raise KeyError
    np.testing.assert_array_equal(scores(system, asked), dense)
    assert hash_weights(system.model) == weights
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in system.model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_lanes_do_not_mix(method: str) -> None:
    system = tiny_system()
    with attached(system, [member(method, 0.5)], text()):
        together = texts(system)
        system.max_lanes = 1
        assert texts(system) == together


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3"])
@pytest.mark.parametrize("method", ["griffin", "coreinfer", "coreinfer by similarity"])
def test_neurons_of_a_prompt_are_the_same_in_plain_calls_with_a_cache(method: str, name: str) -> None:
    system = tiny_system(name)
    tokens = np.random.default_rng(5).integers(0, 256, (2, 24))
    with attached(system, [member(method, 0.5)], text()), torch.no_grad():
        rows = [scores(system, [Scored([*row.tolist(), 0], 12, 12)]) for row in tokens]
        ids = torch.from_numpy(tokens)
        # The prompt comes in two parts; the second call goes on from the first.
        first = system.model(ids[:, :7], use_cache=True)
        out = system.model(ids[:, 7:12], past_key_values=first.past_key_values, use_cache=True)
        found = []
        for place in range(12, 24):
            found.append(torch.log_softmax(out.logits[:, -1], dim=-1).gather(1, ids[:, place : place + 1]))
            out = system.model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
    np.testing.assert_allclose(torch.cat(found, dim=1)[:, 1:], np.stack(rows)[:, :11], atol=2e-4)


def test_only_decode_is_sparse_by_the_neurons_of_a_prompt() -> None:
    system, asked = tiny_system(), requests()
    for method in ("griffin", "coreinfer"):
        adapter = create(method, sparsity=0.5).adapter
        assert adapter.phases() == ("decode",)  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="scope"):
            create(method, sparsity=0.5, scope="all")
        with attached(system, [member(method, 0.5)], text()):
            system.counters.reset()
            scores(system, asked)
        sums = system.counters.sums
        tokens = sum(len(one.tokens) - 1 - one.prefill for one in asked)
        assert sums["decode.activation.total"] == tokens * 3 * 96 * 3 * 48
        assert sums["prefill.activation.total"] == 0


def test_a_sequence_without_a_prompt_stays_dense() -> None:
    system, asked = tiny_system(), [Scored([1, 2, 3, 4, 5], 4, 0)]
    dense = scores(system, asked)
    with attached(system, [member("griffin", 0.7)]):
        np.testing.assert_array_equal(scores(system, asked), dense)


def test_first_blocks_may_stay_dense() -> None:
    system, asked = tiny_system(), requests()
    sparse = create("coreinfer", sparsity=0.5, first_block=2)
    assert [site.block for site in sparse.adapter.sites(system)] == [2]  # type: ignore[attr-defined]
    with attached(system, [sparse]):
        system.counters.reset()
        scores(system, asked)
    assert system.counters.ratio("decode.activation.zeros", "decode.activation.total") == 0.5
    with attached(system, [create("coreinfer", sparsity=0.9, first_block=3)]):
        pass


def test_groups_of_alike_sequences() -> None:
    """Two kinds of calibration sequences make two groups, and a prompt of one kind gets the neurons of its kind."""
    adapter: Any = get("coreinfer").configure({"prediction": "similarity", "groups": 2})
    counts = torch.zeros(8, 10)
    counts[::2, :5] = torch.randint(3, 9, (4, 5)).float()
    counts[1::2, 5:] = torch.randint(3, 9, (4, 5)).float()
    state = adapter._grouped(counts)
    assert [group.shape for group in state] == [(2, 10), (2, 10)]
    prompt = torch.tensor([0.0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert torch.equal(adapter.worth(prompt, state), counts[::2].sum(dim=0))
    assert torch.equal(adapter.worth(prompt.flip(0), state), counts[1::2].sum(dim=0))


@pytest.mark.parametrize("name", MODELS)
def test_projections_are_found(name: str) -> None:
    system = tiny_system(name)
    own = attentions(system)
    assert len(own) == 3
    separate = name not in ("gpt2", "gpt_neox", "phi3", "bloom", "falcon")
    for attention in own:
        assert (attention.query is not None) == separate
        assert len(attention.inputs) == (3 if separate else 1)
        assert attention.output.role in ("o_proj", "out_proj", "c_proj", "dense")
        if attention.query is not None:
            assert (attention.query.role, attention.key.role) == ("q_proj", "k_proj")
    for mlp in mlps(system):
        assert mlp.whole == 48 * (len(mlp.up) + 1 if name != "phi3" else 3)


def test_costs() -> None:
    system, request = tiny_system(), Request(100, 10)
    linear = system.shape.linear_params
    dense = create("wina", sparsity=0.0).adapter.cost(system, request, None)
    # Whole neurons: three projections of 48 x 96, in three blocks, in decode alone.
    found = create("griffin", sparsity=0.5)
    cost = found.adapter.cost(system, request, found.budget)
    assert cost.prefill == dense.prefill
    assert dense.decode.linear - cost.decode.linear == 2 * 10 * 0.5 * 3 * 3 * 48 * 96
    # Turning: two inputs of 48 channels in each of three blocks.
    turned, straight = (create("wina", sparsity=0.5, scope="all", transform=t) for t in (True, False))
    costs = [m.adapter.cost(system, request, m.budget) for m in (turned, straight)]
    assert costs[0].prefill.linear - costs[1].prefill.linear == 2 * 100 * 6 * 48**2
    assert costs[0].decode.linear - costs[1].decode.linear == 2 * 10 * 6 * 48**2
    assert costs[0].decode.bytes_weights - costs[1].decode.bytes_weights == 2 * 10 * 6 * 48**2
    rank_aware = create("r-sparse", sparsity=0.5, scope="all")
    cost = rank_aware.adapter.cost(system, request, rank_aware.budget)
    assert cost.decode.linear == pytest.approx(0.5 * dense.decode.linear, rel=1e-4)
    assert linear == 3 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 96)


@pytest.mark.parametrize("method", ["griffin", "coreinfer", "chess", "cats", "top-k-mlp"])
def test_models_without_mlps_are_refused(method: str) -> None:
    system = tiny_system("rwkv")
    with pytest.raises(InputError, match="finds no MLP"), attached(system, [create(method, sparsity=0.5)], text()):
        pass


def test_what_only_looks_like_an_mlp_is_refused() -> None:
    system = tiny_system("mamba")
    with pytest.raises(InputError, match="no place for"), attached(system, [create("chess", sparsity=0.5)], text()):
        pass
