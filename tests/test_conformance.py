"""`sparsebench conform`: methods that keep to the contract pass, and each way to break it fails by its own check."""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from sparsebench.adapters import MethodCard
from sparsebench.adapters.activation.base import ActivationAdapter, Rule
from sparsebench.adapters.attention._selection import Given, TopTokens
from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.base import Adapter
from sparsebench.adapters.pruning.base import PruningAdapter
from sparsebench.cli import app
from sparsebench.conformance import CHECKS, conform
from sparsebench.errors import InputError, MissingError, UnknownNameError


def card(family, **more):
    about = {"id": "outside", "title": "Outside", "summary": "Of another package.", "role": "control", "unit": "part"}
    return MethodCard(**{"family": family, **about, **more})


class Plain(PruningAdapter):
    """Small weights go."""

    card: ClassVar[MethodCard] = card("pruning", nearest="magnitude", differs="nothing")

    def score(self, layer):
        return layer.weight.abs()


class LeavesNorms(Plain):
    """Halves norms for good."""

    @contextmanager
    def attach(self, system, prepared, budget):
        with super().attach(system, prepared, budget):
            system.model.model.norm.weight.data.mul_(0.5)
            yield system


class LeavesNothingOut(Plain):
    """Says nothing of the budget."""

    def mask(self, layer, allotment):
        return torch.zeros_like(layer.weight, dtype=torch.bool)


class Draws(Plain):
    """Draws without a seed."""

    def score(self, layer):
        return torch.rand_like(layer.weight)


class Writes(Plain):
    """Writes to what it is handed."""

    def score(self, layer):
        return layer.weight.abs_()


class Unfinished(Plain):
    """Its card is no sentence, and names a relative that is not there."""

    card: ClassVar[MethodCard] = card("pruning", summary="Of another package.", nearest="magnitudo", differs="much")


class NeverDense(Plain):
    """Scales what stays, whatever the budget."""

    @contextmanager
    def attach(self, system, prepared, budget):
        handle = system.model.lm_head.register_forward_hook(lambda module, inputs, out: 0.5 * out)
        try:
            with super().attach(system, prepared, budget):
                yield system
        finally:
            handle.remove()


class Overflows(Plain):
    """Its weights become infinite."""

    moves_weights: ClassVar[bool] = True

    def update(self, layer, allotment):
        return super().update(layer, allotment) * torch.inf


class LooksAhead(AttentionAdapter):
    """Keys that resemble the last key of all are read."""

    card: ClassVar[MethodCard] = card("attention", budgets=("tokens",), phases=("prefill",))

    def select(self, view, allowance, prepared):
        def score(part):
            alike = part.key @ part.key[:, :, -1:].transpose(-1, -2)
            return alike[..., 0].mean(dim=1)[:, None, None].expand(-1, -1, part.query.shape[2], -1)

        return TopTokens.within(allowance, view, score)


class ReadsAll(AttentionAdapter):
    """Every key is read."""

    card: ClassVar[MethodCard] = card("attention")

    def select(self, view, allowance, prepared):
        return Given(view.visible())


class OfTheBatch(ActivationAdapter):
    """Channels that are loud in the whole batch stay."""

    card: ClassVar[MethodCard] = card("activation")
    rule: Rule = "topk"

    def score(self, x, state, positions):
        return x.float().abs().mean(dim=0, keepdim=True).expand_as(x)


class Raises(Adapter):
    """Does nothing but fail."""

    card: ClassVar[MethodCard] = card("pruning")

    @contextmanager
    def attach(self, system, prepared, budget):
        raise ZeroDivisionError("not today")
        yield system


def failed(name, **options):
    return {result.check: result.detail for result in conform(name, **options) if result.status == "failed"}


@pytest.mark.parametrize("name", ["magnitude", "wanda", "teal", "top-k-mlp", "streaming-llm", "quest", "knorm", "tova"])
def test_methods_of_every_base_class_pass(name):
    assert failed(name) == {}


def test_one_of_another_package_passes(outside):
    outside(Plain)
    assert failed("outside") == {}
    asked = {result.check for result in conform("outside") if result.status == "ok"}
    assert asked == {*CHECKS} - {"executed is as simulated"}


@pytest.mark.parametrize(
    ("method", "check", "said"),
    [
        (LeavesNorms, "the model comes back bit for bit", "model.norm.weight has other values"),
        (LeavesNothingOut, "what is realised is near the budget", "at 30% it leaves out 0.0% of prunable weights"),
        (ReadsAll, "a tight budget acts", "at 60% nothing is left out of attention pairs"),
        (Draws, "a second run gives the same bits", "draw from the knob `seed`"),
        (Writes, "nothing handed to `score` is written to", "writes to the tensor"),
        (Unfinished, "the card is complete", "'magnitudo' is no method"),
        (NeverDense, "a full budget is dense", "from the dense ones"),
        (Overflows, "all results are numbers", ""),
        (LooksAhead, "later tokens change nothing", "prefix_invariant=False"),
        (OfTheBatch, "a batch changes nothing", "from itself in a batch"),
        (Raises, "the model comes back bit for bit", "ZeroDivisionError: not today"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_fault_fails_its_check(method, check, said, outside):
    outside(method)
    assert said in failed("outside")[check]


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(UnknownNameError, match="wandaa"):
        conform("wandaa")
    with pytest.raises(MissingError, match="gmp needs training"):
        conform("gmp")


def test_the_command_says_what_came_of_it(outside):
    good = CliRunner().invoke(app, ["conform", "magnitude", "--knob", "compare_group=layer"])
    assert (good.exit_code, "10 ok, 0 failed, 1 not asked" in good.output) == (0, True), good.output
    outside(Writes)
    bad = CliRunner().invoke(app, ["conform", "outside"])
    assert (bad.exit_code, "✕  nothing handed to `score`" in bad.output) == (1, True), bad.output
    wrong = CliRunner().invoke(app, ["conform", "magnitude", "--knob", "compare_group"])
    assert isinstance(wrong.exception, InputError)
