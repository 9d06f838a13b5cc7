"""Experts that lie in one tensor count among the weights, though no method reaches them."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from models import GROUPED, tiny_system, tiny_tokenizer

from sparsebench.adapters import create
from sparsebench.adapters.base import attached
from sparsebench.errors import InputError
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.weights import stacked, weight_sparsity


@pytest.fixture
def mixture() -> CausalLM:
    torch.manual_seed(0)
    config = hf.MixtralConfig(**GROUPED, num_local_experts=4)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    return CausalLM(model, tiny_tokenizer(), ref="memory:mixtral")


def test_what_is_pruned_is_a_share_of_all_that_could_be(mixture: CausalLM) -> None:
    experts = sum(weight.numel() for weight in stacked(mixture))
    linear = sum(site.weight.numel() for site in mixture.linears)
    assert experts > 2 * linear
    with attached(mixture, [create("magnitude", sparsity=0.5)]):
        found = weight_sparsity(mixture)
    assert found.prunable == linear + experts
    assert found.sparsity == pytest.approx(0.5 * linear / (linear + experts), rel=1e-3)


def test_convolutions_are_no_experts() -> None:
    assert stacked(tiny_system("llama")) == stacked(tiny_system("mamba")) == []


def test_methods_of_neurons_say_that_they_do_not_look_into_experts(mixture: CausalLM) -> None:
    with (
        pytest.raises(InputError, match="experts that are stacked"),
        attached(mixture, [create("griffin", sparsity=0.5)]),
    ):
        pass
