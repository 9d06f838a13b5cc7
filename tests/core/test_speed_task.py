"""The speed task: what is timed, against what, and who may take part. No time is asserted."""

from __future__ import annotations

import itertools
import math
import re
from contextlib import contextmanager
from types import SimpleNamespace

import models
import pytest
import torch

from sparsebench.adapters import attached, create
from sparsebench.adapters.base import Sparsity
from sparsebench.budget import Budget
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.kernels.energy import EnergyMeter
from sparsebench.reports.collect import _energy, collect
from sparsebench.reports.tables import render
from sparsebench.reports.verify import passed, verify
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.tasks import registry, speed
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.speed import BoundSpeedTask

TASK = {
    "task": "tiny-speed",
    "version": 1,
    "title": "speed",
    "family": "speed",
    "type": "speed",
    "data": [{"embedded": "prose"}],
    "build": "prose",
    "window": 96,
    "windows": 2,
    "generation": {"max_gen_toks": 18, "until": [], "ignore_eos": True},
    "metrics": [
        {"name": "prefill speed-up", "column": "prefill", "headline": True},
        {"name": "time per token", "column": "token_ms", "higher_is_better": False},
    ],
}


def tiny(kind: str = "llama") -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(models.tiny_model(kind), models.tiny_tokenizer())


def bound(system: CausalLM, **changes: object) -> BoundSpeedTask:
    return BoundSpeedTask(TaskDefinition.model_validate(TASK | changes), system.tokenizer, 3)


@pytest.mark.parametrize(
    "stack",
    [
        [],
        [create("block-topk", sparsity=0.5, block=16, mode="executed")],
        [create("quest", sparsity=0.5, page=8, mode="executed")],
        [create("snapkv", sparsity=0.5, mode="executed")],
        [create("depth", sparsity=0.5, order="last")],
        [create("random-activations", sparsity=0.5, mode="executed")],
        [create("griffin", sparsity=0.5, mode="executed")],
    ],
    ids=lambda stack: stack[0].adapter.card.id if stack else "dense",
)
def test_counts_are_those_of_one_run_and_the_system_comes_back(stack):
    system = tiny()
    task = bound(system)
    before = {name: value.clone() for name, value in system.model.state_dict().items()}
    with attached(system, stack):
        result = task.evaluate(system)
        sums = system.counters.sums
        assert sums["prefill.tokens"] == 2 * (96 - (1 if system.decode_from_context_end else 0))
        assert sums["decode.tokens"] == 2 * (17 + (1 if system.decode_from_context_end else 0))
        attending = [name for name in sums if name.endswith("attention.kept")]
        assert bool(attending) == any(member.adapter.card.family == "attention" for member in stack)
    after = system.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], after[name]) for name in before)
    assert len(result.samples) == 3
    assert (result.samples[["prefill", "decode", "first_token_ms", "token_ms"]] > 0).all(axis=None)
    assert result.facts["attention of transformers"] == "sdpa"
    found = result.facts["speed"]
    for phase in ("prefill", "decode"):
        assert found[f"{phase} speed-up, low"] <= found[f"{phase} speed-up"] <= found[f"{phase} speed-up, high"]
        assert math.isclose(sum(result.facts["time_shares"][phase].values()), 1)


def test_each_side_runs_what_its_name_says(monkeypatch):
    system, seen = tiny(), []
    for name in ("_engine", "_transformers"):
        real = getattr(BoundSpeedTask, name)

        def run(task, system, *rest, real=real, name=name):
            seen.append((name, system.policy is not None))
            return real(task, system, *rest)

        monkeypatch.setattr(BoundSpeedTask, name, run)
    with attached(system, [create("block-topk", sparsity=0.5, block=16, mode="executed")]):
        bound(system).evaluate(system)
        assert system.policy is not None
    assert set(seen) == {("_engine", True), ("_engine", False), ("_transformers", False)}
    assert seen.count(("_engine", True)) == 1 + 1 + 3  # counted, warm-up, repetitions
    assert seen.count(("_transformers", False)) == 1 + 3


def test_a_failing_dense_side_leaves_the_method_attached(monkeypatch):
    system = tiny()

    def fail(task, system, *rest):
        raise RuntimeError("transformers cannot")

    monkeypatch.setattr(BoundSpeedTask, "_transformers", fail)
    with attached(system, [create("block-topk", sparsity=0.5, block=16, mode="executed")]):
        with pytest.raises(RuntimeError, match="cannot"):
            bound(system).evaluate(system)
        assert system.policy is not None
    assert system.policy is None


def test_lifting_and_nesting_leave_every_level_as_it_was():
    system = tiny()
    outer = create("depth", sparsity=0.5, order="last")
    blocks = len(system.blocks)
    with attached(system, [outer]):
        kept = len(system.model.model.layers)
        with attached(system, [create("block-topk", sparsity=0.5, mode="executed")]):
            with system.lifted():
                assert system.policy is None and len(system.model.model.layers) == blocks
            assert system.policy is not None
        with system.lifted():
            assert len(system.model.model.layers) == blocks
        assert len(system.model.model.layers) == kept < blocks
    with system.lifted():
        assert len(system.model.model.layers) == blocks


def test_what_is_another_system_than_the_dense_one_is_not_taken_for_it():
    class Wrapping(type(create("magnitude", sparsity=0.5).adapter)):
        @contextmanager
        def attach(self, system, prepared, budget):
            yield CausalLM(system.model, system.tokenizer)

    system = tiny()
    with attached(system, [Sparsity(Wrapping(), Budget("sparsity", 0.5))]) as (other, _):
        assert other is not system
        with pytest.raises(InputError, match="cannot be taken off"):
            bound(other).evaluate(other)


def test_simulated_methods_are_refused_when_they_are_planned(small, tmp_path):
    task = tmp_path / "speed.yaml"
    task.write_text(str(TASK).replace("True", "true").replace("False", "false"))
    grid = small.data["grids"][0] | {
        "tasks": [str(task)],
        "methods": [{"method": "magnitude", "budgets": {"sparsity": 0.5}}],
    }
    with pytest.raises(InputError, match="magnitude is a mask over dense work"):
        run_suite(str(small.write(grids=[grid])), tmp_path / "out")
    entry = {"method": "block-topk", "budgets": {"sparsity": 0.5}, "knobs": {}}
    with pytest.raises(InputError, match="has no speed") as refused:
        run_suite(str(small.write(grids=[grid | {"methods": [entry]}])), tmp_path / "out")
    assert refused.value.hint == "give it the knob mode: executed"
    entry["knobs"] = {"mode": "executed", "block": 16}
    assert run_suite(str(small.write(grids=[grid | {"methods": [entry]}])), tmp_path / "out", limit=3).failed == 0
    for cell in Store(tmp_path / "out"):
        outcome = cell.record.outcome
        assert cell.spec.mode == "executed" and outcome.speed["prefill speed-up"] > 0
        assert outcome.metrics[0].n == 3
        bounds = [outcome.speed[f"{phase} speed-up, at most"] for phase in ("prefill", "decode")]
        assert all(bound >= 1 for bound in bounds)
        assert (bounds[0] > 1) == bool(cell.spec.stack)
        assert bounds[1] == pytest.approx(1)  # the method leaves decode alone


def test_what_was_measured_stands_beside_the_quality_of_the_same_method(small, tmp_path):
    task = tmp_path / "speed.yaml"
    task.write_text(str(TASK).replace("True", "true").replace("False", "false"))
    grid = small.data["grids"][0] | {"name": "quality", "tasks": [small.task("tiny-choice")]}
    levels = {"budgets": {"sparsity": [0.3, 0.5]}}
    methods = [{"method": "block-topk", "knobs": {"block": 16}, **levels}, {"method": "magnitude", **levels}]
    executed = {"method": "block-topk", "knobs": {"block": 16, "mode": "executed"}, "budgets": {"sparsity": 0.5}}
    speeds = grid | {"name": "speed", "tasks": [str(task)], "methods": [executed]}
    suite = small.write(grids=[grid | {"methods": methods}, speeds])
    assert run_suite(str(suite), tmp_path / "out").failed == 0
    table = collect(tmp_path / "out")
    shown = table[table["speed"] != ""]
    assert set(zip(shown["task"], shown["method"], shown["budget"], strict=True)) == {
        ("tiny-choice", "block-topk", "50%"),
        ("tiny-speed", "block-topk", "50%"),
    }
    assert shown["speed"].nunique() == 1
    assert re.fullmatch(r"prefill \d+\.\d\dx, decode \d+\.\d\dx \(tiny-speed\)", shown["speed"].iloc[0])
    assert "| speed |" in render(table, "md")
    assert "| speed |" not in render(table[table["method"] == "magnitude"], "md")
    assert passed(verify(tmp_path / "out"))


def test_energy_stands_beside_the_times_where_a_counter_is(monkeypatch):
    """A counter that goes up by a joule whenever it is read, and none here in truth."""
    system, read = tiny(), itertools.count(1)
    with attached(system, [create("griffin", sparsity=0.5, mode="executed")]):
        without = bound(system).evaluate(system).facts
        monkeypatch.setattr(speed, "ENERGY_SECONDS", 0.02)
        monkeypatch.setattr(speed, "SLOWEST", math.inf)
        monkeypatch.setattr(EnergyMeter, "of", lambda devices: SimpleNamespace(read=lambda: float(next(read))))
        before = dict(system.counters.sums)
        system.counters.reset()
        facts = bound(system).evaluate(system).facts
        assert dict(system.counters.sums) == before  # longer texts are not counted
    assert not any("energy" in name for name in [*without, *without["speed"]])
    assert without["graphs"] == {"as it is": False, "dense, engine": False, "dense, transformers": False}
    assert without["without graphs"]["as it is"] == "the model is not on a GPU"
    for name in ("prompt", "token"):
        sides = facts["energy"][f"joules of a {name}"]
        assert set(sides) == set(facts["graphs"]) and min(sides.values()) > 0
        assert facts["speed"][f"energy of a {name}, J"] == sides["as it is"]
        assert facts["speed"][f"energy of a {name}, J, dense"] in sides.values()
    whole = facts["energy"]["joules of a prompt"]["as it is"] + 17 * facts["energy"]["joules of a token"]["as it is"]
    assert facts["joules"] == pytest.approx(2 * whole)
    assert re.fullmatch(r" with [\d.e-]+ of [\d.e-]+ J a token", _energy(facts["speed"], "decode"))
    assert _energy(without["speed"], "decode") == ""


def test_joules_of_runs_that_were_not_those_timed_are_no_ones(monkeypatch):
    system, read = tiny(), itertools.count(1)
    monkeypatch.setattr(speed, "ENERGY_SECONDS", 0.02)
    monkeypatch.setattr(speed, "SLOWEST", 0.0)
    monkeypatch.setattr(EnergyMeter, "of", lambda devices: SimpleNamespace(read=lambda: float(next(read))))
    facts = bound(system).evaluate(system).facts
    assert "times as long while its energy was measured" in facts["no energy"]
    assert not any("energy" in name for name in facts["speed"]) and "joules" not in facts


def test_what_is_wrong_is_named():
    system = tiny()
    with pytest.raises(InputError, match="make no batch of 2 x 10000000"):
        bound(system, window=10_000_000)
    with pytest.raises(UnknownNameError, match="joules"):
        bound(system, metrics=[{"name": "energy", "column": "joules", "headline": True}])
    system.batch_tokens = 1
    with pytest.raises(InputError, match="do not run at once"):
        bound(system).evaluate(system)


def test_the_packaged_tasks_are_defined():
    names = {definition.task for definition in registry.definitions() if definition.type == "speed"}
    assert {"speed-1024", "speed-4096", "speed-8192", "speed-batch-512"} <= names
