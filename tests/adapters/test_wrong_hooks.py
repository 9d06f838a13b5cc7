"""Hooks that give what a family cannot use: the error names the method, the hook and the form that would be right."""

from __future__ import annotations

from typing import ClassVar

import models
import pytest
import torch

from sparsebench.adapters import MethodCard
from sparsebench.adapters.activation.base import ActivationAdapter, Rule
from sparsebench.adapters.attention import _selection
from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.attention._selection import TopTokens
from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.adapters.pruning.base import PruningAdapter
from sparsebench.budget import Budget
from sparsebench.calibration_texts import calibration_for
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.suite import CalibrationEntry

HALF = Budget("sparsity", 0.5)


def card(family, **more):
    about = {
        "id": "wrong",
        "title": "Wrong",
        "summary": "Gives what cannot be used.",
        "role": "control",
        "unit": "part",
    }
    return MethodCard(family=family, **about, **more)


class Weights(PruningAdapter):
    card: ClassVar[MethodCard] = card("pruning")

    def score(self, layer):
        return layer.weight.abs()


class Turned(Weights):
    def score(self, layer):
        return layer.weight.abs().T


class NarrowMask(Weights):
    def mask(self, layer, allotment):
        return super().mask(layer, allotment)[:, :1]


class OneRow(Weights):
    moves_weights: ClassVar[bool] = True

    def update(self, layer, allotment):
        return super().update(layer, allotment)[:1]


class Channels(ActivationAdapter):
    card: ClassVar[MethodCard] = card("activation")
    rule: Rule = "topk"

    def score(self, x, state, positions):
        return x.float().abs()


class OfTokens(Channels):
    def score(self, x, state, positions):
        return x.float().norm(dim=1)


class NoNumbers(Channels):
    def score(self, x, state, positions):
        return x.float().abs() * torch.nan


class OneIsNone(Channels):
    def score(self, x, state, positions):
        worth = x.float().abs()
        worth[-1, -1] = torch.nan
        return worth


class Keys(CacheAdapter):
    """Its card says nothing of prefixes, which cache methods need not."""

    card: ClassVar[MethodCard] = card("attention", phases=("decode",), budgets=("sparsity", "tokens"))

    def score(self, prompt, prepared):
        return -prompt.key[0].float().norm(dim=-1)


class WithRows(Keys):
    def score(self, prompt, prepared):
        return -prompt.key.float().norm(dim=-1)


class KeysOfNoWorth(Keys):
    def score(self, prompt, prepared):
        return super().score(prompt, prepared) * torch.nan


class TokensOfNoWorth(AttentionAdapter):
    card: ClassVar[MethodCard] = card("attention")

    def select(self, view, allowance, prepared):
        shape = (len(view.lengths), 1, 1, view.key.shape[2])
        return TopTokens.within(
            allowance, view, lambda part: torch.full(shape, torch.nan).expand(-1, -1, part.query.shape[2], -1)
        )


def run(method, arch="llama"):
    system = models.tiny_system(arch)
    tokens = system.tokenizer("".join(models.STORIES)).input_ids[:80]
    with attached(system, [Sparsity(method, HALF)]):
        return score(system, [Scored(tokens, 60, 60)])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            Turned(),
            r"wrong: `score` gives \[48, 24\] for model.layers.0.self_attn.k_proj, not \[out, in\] = \[24, 48\]",
        ),
        (NarrowMask(), r"wrong: `mask` gives \[48, 1\] for .*q_proj, not \[out, in\] = \[48, 48\]"),
        (OneRow(), r"wrong: `update` gives \[1, 48\] for .*q_proj, not \[out, in\] = \[48, 48\]"),
        (OfTokens(), r"wrong: `score` gives \[\d+\], not \[tokens, channels\] = \[\d+, 48\]"),
        (NoNumbers(), r"wrong: `score` gives what is not a number \(NaN\)"),
        (OneIsNone(), r"wrong: `score` gives what is not a number \(NaN\)"),
        (WithRows(), r"wrong: `score` gives \[1, 2, 60\] in layer 0, not \[kv_heads, keys\] = \[2, 60\]"),
        (KeysOfNoWorth(), r"wrong: `score` gives what is not a number \(NaN\) in layer 0"),
        (TokensOfNoWorth(), r"scores of keys in layer 0 are not all numbers \(NaN\)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_is_wrong_and_what_would_be_right_is_said(method, said):
    with pytest.raises(InputError, match=said):
        run(method)


def test_a_device_that_is_not_to_be_waited_for_is_asked_once_for_all_prompts(monkeypatch):
    monkeypatch.setattr(_selection, "ASKED", frozenset())
    with pytest.raises(InputError, match=r"gives what is not a number \(NaN\) in layer 0"):
        run(KeysOfNoWorth())
    assert len(run(Keys())[0].logprobs) == 60


@pytest.mark.parametrize("method", [Weights(), Channels(), Keys()], ids=lambda method: type(method).__name__)
def test_their_right_forms_run(method):
    assert len(run(method)[0].logprobs) == 60


def test_thresholds_of_no_numbers_are_refused_in_calibration():
    system = models.tiny_system()
    text = calibration_for(system.tokenizer, CalibrationEntry(data="prose", sequences=1, length=32).model_dump())
    with pytest.raises(InputError, match="not a number"):
        NoNumbers(rule="threshold").prepare(system, text)
