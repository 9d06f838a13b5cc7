"""Methods that do not give the model back as it was: they have failed, and nobody else is the worse for it."""

from __future__ import annotations

from contextlib import contextmanager

import models
import pytest
import torch

import sparsebench
from sparsebench import adapters
from sparsebench.adapters.base import attached
from sparsebench.adapters.pruning.magnitude import Magnitude
from sparsebench.errors import NotRestoredError
from sparsebench.store import Store
from sparsebench.suite_run import run_suite

RIGHT = Magnitude.attach


def masks_weights(system):
    with torch.no_grad():
        for site in system.linears:
            site.weight.mul_(torch.rand_like(site.weight) > 0.5)


def halves_norms(system):
    for name, parameter in system.model.named_parameters():
        if "norm" in name:
            parameter.data *= 0.5


def leaves_a_hook(system):
    system.model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: out * 0.5)


@contextmanager
def harmful(change, system):
    change(system)
    yield system


@contextmanager
def failing(change, system):
    change(system)
    raise ZeroDivisionError("in the midst of it")
    yield system


@pytest.fixture
def poison(monkeypatch):
    """Lets magnitude do something to the model for good."""

    def patch(change, how=harmful):
        monkeypatch.setattr(Magnitude, "attach", lambda self, system, prepared, budget: how(change, system))

    return patch


def values(folder):
    return {
        (cell.record.placement.label, cell.spec.task.id, cell.spec.seed): (
            cell.record.outcome.status,
            [found.value for found in cell.record.outcome.metrics],
        )
        for cell in Store.open(folder)
    }


@pytest.mark.parametrize("how", [harmful, failing])
@pytest.mark.parametrize("change", [masks_weights, halves_norms, leaves_a_hook])
def test_its_cells_have_failed_and_all_others_are_as_without_it(small, tmp_path, poison, change, how):
    run_suite(str(small.path), tmp_path / "right")
    poison(change, how)
    outcome = run_suite(str(small.path), tmp_path / "results")
    right, found = values(tmp_path / "right"), values(tmp_path / "results")
    assert found.keys() == right.keys()
    harmed = {key for key in found if key[0].startswith("magnitude")}
    assert (outcome.done, outcome.failed) == (len(found), len(harmed)) == (19, 6)
    for key, (status, numbers) in found.items():
        wanted, expected = ("failed", []) if key in harmed else right[key]
        assert status == wanted and numbers == pytest.approx(expected, rel=1e-6)
    error = next(
        c.record.outcome.error
        for c in Store.open(tmp_path / "results")
        if c.spec.stack[:1] and "magnitude" in c.record.placement.label
    )
    assert "magnitude did not give the model back as it was" in error
    assert ("weight has other values" in error) is (change is not leaves_a_hook)


def test_once_it_is_mended_the_cells_are_computed(small, tmp_path, poison, monkeypatch):
    poison(masks_weights)
    run_suite(str(small.path), tmp_path / "results")
    monkeypatch.setattr(Magnitude, "attach", RIGHT)
    again = run_suite(str(small.path), tmp_path / "results")
    assert (again.done, again.failed, again.skipped) == (6, 0, 13)


def test_a_score_is_handed_a_copy(monkeypatch):
    """In float32 too, where no conversion makes one."""
    system = models.tiny_system()
    monkeypatch.setattr(Magnitude, "score", lambda self, layer: layer.weight.abs_())
    before = [site.weight.clone() for site in system.linears]
    with attached(system, [adapters.create("magnitude", sparsity=0.5)]):
        for site, weight in zip(system.linears, before, strict=True):
            assert torch.equal(site.weight, weight.masked_fill(site.weight == 0, 0))
            assert float((site.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_context_of_ones_own_is_told_too(poison):
    poison(halves_norms)
    with (
        pytest.raises(NotRestoredError, match=r"magnitude did not give .*input_layernorm.weight has other values"),
        attached(models.tiny_system(), [adapters.create("magnitude", sparsity=0.5)]),
    ):
        pass


@pytest.mark.parametrize("foreign", [True, False])
def test_a_model_in_memory_is_mended_where_there_is_a_copy(small, poison, foreign, monkeypatch):
    """Weights are copied for methods that are not SparseBench's own; one of its own that does it ends the evaluation."""
    if foreign:
        monkeypatch.setattr(Magnitude, "__module__", "somebody_elses")
    model, tokenizer = models.stories()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    methods = [adapters.create("magnitude", sparsity=0.5), adapters.create("streaming-llm", sparsity=0.5)]
    right = sparsebench.evaluate(model, tokenizer, small.task("tiny-perplexity"), methods=methods)
    poison(masks_weights)
    if not foreign:
        with pytest.raises(NotRestoredError, match="magnitude did not give the model back"):
            sparsebench.evaluate(model, tokenizer, small.task("tiny-perplexity"), methods=methods)
        return
    table = sparsebench.evaluate(model, tokenizer, small.task("tiny-perplexity"), methods=methods)
    assert table.groupby("method")["status"].first().to_dict() == {
        "dense": "ok",
        "magnitude": "failed",
        "streaming-llm": "ok",
    }
    for name in ("dense", "streaming-llm"):
        pair = [frame.loc[frame["method"] == name, "value"].tolist() for frame in (table, right)]
        assert pair[0] == pair[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_weights_cannot_mend_ends_the_evaluation(small, poison, monkeypatch):
    monkeypatch.setattr(Magnitude, "__module__", "somebody_elses")
    poison(leaves_a_hook)
    methods = [adapters.create("magnitude", sparsity=0.5), adapters.create("wanda", sparsity=0.5)]
    with pytest.raises(NotRestoredError, match="lm_head is another one, or has other hooks"):
        sparsebench.evaluate(*models.stories(), small.task("tiny-perplexity"), methods=methods)
