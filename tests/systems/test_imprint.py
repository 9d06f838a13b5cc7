"""The imprint of a model: nothing that a method may leave behind goes unseen, and what nobody changed is the same."""

from __future__ import annotations

import models
import pytest
import torch
import transformers as hf

from sparsebench.systems import imprint
from sparsebench.systems.imprint import Imprint, copies_of, put_back, shown


def one_bit(model):
    model.model.layers[1].mlp.down_proj.weight.data.view(torch.int32)[2, 3] ^= 1


def rows_in_other_places(model):
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight.copy_(weight.roll(1, dims=0))


def two_that_cancel(model):
    weight = model.model.layers[0].mlp.up_proj.weight.data.view(torch.int32)
    weight[0, 0] += 1
    weight[5, 7] -= 1


def a_norm(model):
    model.model.norm.weight.data.mul_(0.5)


def a_buffer(model):
    model.model.rotary_emb.inv_freq.mul_(2)


def another_dtype(model):
    model.model.norm.weight.data = model.model.norm.weight.data.to(torch.bfloat16)


def another_tensor(model):
    layer = model.model.layers[2].self_attn.q_proj
    layer.weight = torch.nn.Parameter(-layer.weight.data)


def a_hook(model):
    model.lm_head.register_forward_hook(lambda module, inputs, out: out * 0.5)


def a_forward(model):
    model.model.layers[0].mlp.forward = lambda x: x


def a_layer_less(model):
    del model.model.layers[2]


def another_module(model):
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()


def training(model):
    model.model.layers[0].train()


def the_configuration(model):
    model.config.rms_norm_eps = 1.0


def untied(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (one_bit, "model.layers.1.mlp.down_proj.weight has other values"),
        (rows_in_other_places, "model.layers.0.mlp.up_proj.weight has other values"),
        (two_that_cancel, "model.layers.0.mlp.up_proj.weight has other values"),
        (a_norm, "model.norm.weight has other values"),
        (a_buffer, "model.rotary_emb.inv_freq has other values"),
        (another_dtype, "model.norm.weight is [48] torch.bfloat16 on cpu, and was [48] torch.float32 on cpu"),
        (another_tensor, "model.layers.2.self_attn.q_proj.weight has other values"),
        (a_hook, "module lm_head is another one, or has other hooks"),
        (a_forward, "module model.layers.0.mlp is another one"),
        (a_layer_less, "model.layers.2.self_attn.q_proj.weight is gone"),
        (another_module, "module model.layers.0.mlp.act_fn is another one"),
        (training, "module model.layers.0 is another one, or has other hooks or another mode"),
        (the_configuration, "the configuration is another one"),
        (untied, "lm_head.weight is new"),
    ],
)
def test_every_change_is_seen_and_named(change, named):
    model = models.tiny_model("llama")
    before = Imprint.of(model)
    assert before.differences(Imprint.of(model)) == []
    change(model)
    assert any(found.startswith(named) for found in before.differences(Imprint.of(model)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 4, 4093, 8 * 4093, 8 * 4093 + 5, 50_001])
def test_each_single_entry_counts_whatever_the_size(size, dtype):
    model = torch.nn.ParameterList([torch.randn(size).to(dtype)])
    before = Imprint.of(model)
    for place in {0, size // 2, size - 1}:
        model[0].data[place] *= -1
        assert before.differences(Imprint.of(model)) == ["0 has other values"]
        model[0].data[place] *= -1
    assert before.differences(Imprint.of(model)) == []


def test_views_that_are_not_contiguous_or_aligned_are_read_too():
    whole = torch.randn(65, 33)
    module = torch.nn.ParameterList([whole[:, 1:].T, whole.reshape(-1)[1:], torch.ones(3, dtype=torch.bool).float()])
    before = Imprint.of(module)
    assert Imprint.of(module) == before
    whole.view(torch.int32)[64, 32] ^= 4
    assert len(before.differences(Imprint.of(module))) == 2


def test_frequencies_that_the_model_sets_itself_are_no_change():
    """A rotary embedding of the dynamic kind goes by the length of what it was called with last."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = hf.AutoModelForCausalLM.from_config(
        hf.LlamaConfig(**{**models.GROUPED, "max_position_embeddings": 16}, rope_parameters=rope)
    ).eval()
    before, was = Imprint.of(model), model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(torch.arange(64)[None])
    assert not torch.equal(was, model.model.rotary_emb.inv_freq)
    assert before.differences(Imprint.of(model)) == []


def test_weights_are_put_back_from_copies():
    model = models.tiny_model("llama")
    before, copies = Imprint.of(model), copies_of(model)
    for change in (one_bit, a_norm, a_buffer, another_dtype, another_tensor):
        change(model)
    put_back(model, copies)
    assert before.differences(Imprint.of(model)) == []


def test_what_acts_in_the_engine_is_part_of_it():
    system = models.tiny_system()
    before = system.imprint()
    system.policy = object()
    assert before.differences(system.imprint()) == ["the system's policy is another one"]


def test_many_differences_are_counted():
    assert shown(["a", "b", "c"]) == "a; b; c"
    assert shown([*"abcde"]) == "a; b; c; and 2 more"
    assert imprint.SHOWN == 3
