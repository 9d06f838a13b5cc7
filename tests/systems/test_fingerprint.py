"""The fingerprint of a model in memory: equal for equal models, another for whatever changes an answer."""

from __future__ import annotations

import threading
import types
import warnings

import models
import pytest
import torch

from sparsebench.systems import fingerprint
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.fingerprint import hash_weights, model_fingerprint

EVERY = {**models.ARCHITECTURES, **models.PLAIN, **models.MIXTURES}


def of(model, tokenizer=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model_fingerprint(model, tokenizer or models.tiny_tokenizer())


@pytest.mark.parametrize("name", EVERY)
def test_equal_models_have_one_and_others_another(name):
    assert of(models.tiny_model(name)) == of(models.tiny_model(name)) != of(models.tiny_model(name, seed=1))


def _attribute(model):
    model.model.layers[1].self_attn.scaling = 5.0


def _rotary(model):
    model.model.rotary_emb.inv_freq *= 0.5  # a buffer that checkpoints do not hold


def _configuration(model):
    model.config.rms_norm_eps = 1e-3


def _hook(model):
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0)


def _forward(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = types.MethodType(lambda self, x: self.down_proj(x[..., :1] * 0 + self.up_proj(x)), mlp)


def _class(model):
    class Gelu(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.gelu(x)

    model.model.layers[0].mlp.act_fn = Gelu()


def _last_byte(model):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[-1, -1] *= 1 + 1e-6


CHANGES = [_attribute, _rotary, _configuration, _hook, _forward, _class, _last_byte]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_an_answer_changes_it(change):
    model = models.tiny_model()
    before = of(model)
    change(model)
    assert of(model) != before
    again = models.tiny_model()
    change(again)
    assert of(again) == of(model)


def test_what_a_hook_closes_over_counts():
    def hooked(scale):
        model = models.tiny_model()
        model.model.layers[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * scale, *inputs[1:]))
        return of(model)

    assert hooked(0.5) == hooked(0.5) != hooked(0.25)
    assert hooked(torch.ones(2)) == hooked(torch.ones(2)) != hooked(torch.zeros(2))


def test_a_class_whose_forward_was_replaced(monkeypatch):
    model = models.tiny_model()
    before = of(model)
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: x)
    assert of(model) != before


def test_what_cannot_be_described_is_new_each_time():
    model, lock = models.tiny_model(), threading.Lock()

    def hook(module, inputs, output):
        with lock:
            return output

    model.model.layers[1].register_forward_hook(hook)
    with pytest.warns(UserWarning, match=r"not found again") as caught:
        first = model_fingerprint(model)
    assert "a hook of model.layers.1" in str(caught[0].message)
    with pytest.warns(UserWarning):
        assert model_fingerprint(model) != first


def test_a_tokenizer_counts_and_how_it_was_last_called_does_not():
    model, tokenizer, other = models.tiny_model(), models.tiny_tokenizer(), models.tiny_tokenizer()
    before = of(model, tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert of(model, tokenizer) == before
    other.add_tokens(["<more>"])
    assert of(model, other) != before


@pytest.mark.parametrize("layout", ["rows", "transposed"])
def test_no_row_of_a_large_tensor_is_left_out(monkeypatch, layout):
    monkeypatch.setattr(fingerprint, "PIECE", 4096)
    module = torch.nn.Embedding(300, 64)
    if layout == "transposed":
        module.weight = torch.nn.Parameter(module.weight.detach().T)
    before = hash_weights(module)
    for row in range(0, module.weight.shape[0], 7):
        with torch.no_grad():
            kept = module.weight[row, 1].clone()
            module.weight[row, 1] = float("nan")
            assert hash_weights(module) != before
            module.weight[row, 1] = kept
    assert hash_weights(module) == before


def test_only_models_without_one_of_their_own_are_hashed(monkeypatch):
    monkeypatch.setattr("sparsebench.systems.causal_lm.model_fingerprint", lambda *_: pytest.fail("hashed"))
    assert CausalLM(models.tiny_model(), models.tiny_tokenizer(), fingerprint="of its files").fingerprint
