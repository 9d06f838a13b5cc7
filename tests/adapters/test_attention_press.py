"""Presses of kvpress: a stand-in for the library in the place of the real one, and the real one where it is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from attention_texts import random_ids

from sparsebench.adapters import attached, create
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError, MissingError

LIBRARY = '''
"""A stand-in for kvpress: presses that keep the first keys, drop some heads' keys behind a mask, or change keys."""
from contextlib import contextmanager
from dataclasses import dataclass
import torch

__version__ = "stand-in"


@dataclass
class FirstPress:
    compression_ratio: float = 0.0
    skip: int = 0

    def left(self, keys):
        return max(1, int(keys.shape[2] * (1 - self.compression_ratio)))

    def hook(self, module, inputs, kwargs, output):
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        count = self.left(layer.keys)
        places = torch.arange(count).flip(0) + self.skip  # in no order, as topk leaves them
        layer.keys, layer.values = layer.keys[:, :, places], layer.values[:, :, places]
        return output

    @contextmanager
    def __call__(self, model):
        hooks = [b.self_attn.register_forward_hook(self.hook, with_kwargs=True) for b in model.model.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass
class HidingPress(FirstPress):
    press: FirstPress = None

    @property
    def compression_ratio(self):
        return self.press.compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, value):
        if self.press is not None:
            self.press.compression_ratio = value

    def hook(self, module, inputs, kwargs, output):
        keys = kwargs["past_key_values"].layers[module.layer_idx].keys
        count = keys.shape[2] - self.press.left(keys)
        module.masked_key_indices = torch.zeros(count).long(), torch.ones(count).long(), torch.arange(count)
        return output


@dataclass
class TurningPress(FirstPress):
    def hook(self, module, inputs, kwargs, output):
        kwargs["past_key_values"].layers[module.layer_idx].keys += 1
        return output
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvpress.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


REQUESTS = [Scored(random_ids(n, n), 8, prefill) for n, prefill in ((70, 60), (41, 30), (12, 4))]


def logprobs(system: Any) -> np.ndarray:
    return np.concatenate([result.logprobs for result in score(system, REQUESTS)])


def held(system: Any, **knobs: Any) -> list[torch.Tensor]:
    """What a press kept of each of the prompts, in every layer, bool [kv_heads, keys]."""
    found: list[torch.Tensor] = []
    with attached(system, [create("kvpress", **knobs)]) as (sparse, _):
        cut = sparse.policy.selector.cut

        def seen(prompt: Any, allowance: Any, layers: int) -> Any:
            result = cut(prompt, allowance, layers)
            found.append(result.keys)
            return result

        sparse.policy.selector.cut = seen
        logprobs(sparse)
    return found


def test_what_a_press_keeps_is_what_decoded_queries_read(library: None) -> None:
    """The stand-in keeps the first keys, which no method here does; order and padding of the rows do not matter."""
    system = models.tiny_system("llama")
    masks = held(system, press="FirstPress", sparsity=0.5)
    assert len(masks) == 3 * 3
    for mask in masks:
        length = mask.shape[1]
        assert length in (60, 30, 4)
        assert torch.equal(mask, (torch.arange(length) < length // 2).expand_as(mask))
    dense = logprobs(system)
    with attached(system, [create("kvpress", press="FirstPress", sparsity=0.0)]) as (sparse, prepared):
        assert np.abs(logprobs(sparse) - dense).max() < 1e-4
        assert prepared[0].facts["kvpress"] == "stand-in"
    assert np.abs(logprobs(system) - dense).max() < 1e-6, "it is gone afterwards"


def test_the_counters_are_ours(library: None) -> None:
    """A press that only hides keys is counted as if they were gone: one of two heads loses half of its keys."""
    system = models.tiny_system("llama")
    system.counters.reset()
    masks = held(system, press="HidingPress(FirstPress)", options={"skip": 0}, sparsity=0.5)
    assert all(mask[0].all() and int(mask[1].sum()) == mask.shape[1] // 2 for mask in masks)
    density = system.counters.ratio("decode.attention.kept", "decode.attention.visible")
    assert 0.75 < density < 0.85


def test_options_reach_the_press(library: None) -> None:
    masks = held(models.tiny_system("llama"), press="FirstPress", options={"skip": 2}, tokens=2)
    assert all(torch.equal(mask.nonzero()[:, 1].unique(), torch.tensor([2, 3])) for mask in masks)


def test_windows_and_plain_calls_with_padding(library: None) -> None:
    """On a model with windows a query reads what was kept and lies in its window; a padded batch is as its rows."""
    system = models.tiny_system("mistral")
    assert all(
        int(mask[:, : max(0, mask.shape[1] - 23)].sum()) == 0 for mask in held(system, press="FirstPress", sparsity=0.2)
    )
    system = models.tiny_system("qwen2")
    first, second = random_ids(20, 1), random_ids(12, 2)
    ids = torch.tensor([first, [256] * 8 + second])
    padding = torch.tensor([[1] * 20, [0] * 8 + [1] * 12])
    with attached(system, [create("kvpress", press="FirstPress", sparsity=0.5)]) as (sparse, _), torch.inference_mode():
        places = (padding.cumsum(dim=1) - 1).clamp(min=0)
        cache = sparse.model(ids, attention_mask=padding, position_ids=places, use_cache=True).past_key_values
        more = torch.cat([padding, torch.ones(2, 1, dtype=padding.dtype)], dim=1)
        positions = padding.sum(dim=1, keepdim=True)
        together = sparse.model(ids[:, :1], attention_mask=more, position_ids=positions, past_key_values=cache).logits[
            :, -1
        ]
        for row, own in enumerate((first, second)):
            cache = sparse.model(torch.tensor([own]), use_cache=True).past_key_values
            alone = sparse.model(ids[row : row + 1, :1], past_key_values=cache).logits[0, -1]
            assert torch.allclose(together[row], alone, atol=1e-4)


def test_in_a_window_a_budget_is_what_stays_within_it(library: None) -> None:
    """The stand-in keeps the first keys, so that it must keep most of a prompt for some to lie in the window."""
    system = models.tiny_system("gemma3")
    masks = held(system, press="FirstPress", sparsity=0.8)
    for place, mask in enumerate(masks):  # layer after layer, in each all prompts
        length = mask.shape[1]
        available = length if system.shape.windows[place // len(REQUESTS)] is None else min(length, 23)
        assert not mask[:, : length - available].any()
        assert mask.sum(dim=1).tolist() == [max(1, int(0.2 * available))] * len(mask)


def test_generation_goes_on_from_what_was_kept(library: None) -> None:
    system = models.tiny_system("llama")
    prompts = [Prompt(random_ids(n, n), n - 1, (), 6, frozenset()) for n in (30, 17)]
    with attached(system, [create("kvpress", press="FirstPress", sparsity=0.4)]) as (sparse, _):
        generator = Generator(sparse, prompts)
        generator.run()
    assert [len(tokens) for tokens in generator.tokens] == [6, 6]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"press": "NoPress"}, "no press 'NoPress'"),
        ({"press": "FirstPress", "options": {"window": 3}}, "no option 'window'"),
        ({"press": "TurningPress"}, "changes keys or values"),
    ],
)
def test_what_cannot_be_is_said(library: None, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        held(models.tiny_system("llama"), sparsity=0.5, **knobs)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEBENCH_KVPRESS", raising=False)
    monkeypatch.setattr("sparsebench.adapters.attention._press.find_spec", lambda name: None)
    with (
        pytest.raises(MissingError, match="kvpress is not installed"),
        attached(models.tiny_system("llama"), [create("kvpress", sparsity=0.5)]),
    ):
        pass


@pytest.mark.skipif(not os.environ.get("SPARSEBENCH_KVPRESS"), reason="needs an environment with kvpress")
@pytest.mark.parametrize(("press", "ours"), [("KnormPress", "knorm"), ("KeyDiffPress", "keydiff")])
def test_a_real_press_keeps_what_its_namesake_here_keeps(press: str, ours: str) -> None:
    system = models.tiny_system("llama")
    dense = logprobs(system)
    found = []
    for name, knobs in (("kvpress", {"press": press}), (ours, {})):
        with attached(system, [create(name, sparsity=0.5, **knobs)]) as (sparse, _):
            found.append(logprobs(sparse))
    assert np.abs(found[0] - found[1]).max() < 1e-3 < np.abs(found[0] - dense).max()
