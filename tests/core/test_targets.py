"""Targets in suites: solved at plan time, recorded with both budgets, and stored as a suite that needs no solving."""

from __future__ import annotations

import json

import models
import pytest
import yaml

from sparsebench.errors import InputError
from sparsebench.plan import plan
from sparsebench.suite import Suite
from sparsebench.suite_source import from_source, load_suite, names
from sparsebench.targets import unmet
from sparsebench.yaml_source import parse_yaml


def suite(**changes):
    grid = {
        "name": "g",
        "system": "lm",
        "request": "prompt",
        "tasks": [{"task": "long-prose-512", "limit": 1}],
        "methods": [
            {"method": "vertical-slash", "budgets": {"flops": [0.9, 0.3]}},
            {"method": "snapkv", "request": "answer", "budgets": {"kv_bytes": 0.5}},
            {
                "stack": [
                    {"method": "magnitude", "budget": {"sparsity": 0.2}},
                    {"method": "a-shape", "budget": {"flops": 0.7}},
                ]
            },
            {"method": "magnitude", "budgets": {"sparsity": 0.5}},
        ],
        **changes,
    }
    return {
        "suite": "s",
        "version": 1,
        "systems": {"lm": {"model": f"path:{models.data_folder('stories260k')}"}},
        "requests": {"prompt": {"prompt": 480}, "answer": {"phase": "decode", "prompt": 400, "answer": 64}},
        "grids": [grid],
    }


def read(data) -> Suite:
    return from_source(parse_yaml(yaml.safe_dump(data, sort_keys=False), "s.yaml"))


@pytest.fixture(scope="module")
def made():
    return plan(read(suite()))


def test_targets_become_budgets_of_the_methods_own(made):
    rows = {cell.placement.label: cell for cell in made.cells}
    assert [label.partition(" ")[0] for label in rows] == [
        "dense",
        "vertical-slash",
        "snapkv",
        "magnitude",
        "magnitude",
    ]
    cell = next(cell for label, cell in rows.items() if label.startswith("vertical"))
    assert set(cell.spec.stack[0].budget) == {"sparsity"}
    target = cell.placement.facts["target"]
    assert (target["flops"], target["request"], target["prompt"]) == (0.9, "prompt", 480)
    assert target["predicted"] == pytest.approx(0.9, abs=1e-3)
    assert "target" not in rows["magnitude 50%"].placement.facts
    both = next(cell for label, cell in rows.items() if "+" in label)
    assert both.spec.stack[0].budget == {"sparsity": 0.2}
    assert both.placement.facts["target"]["flops"] == 0.7


def test_what_is_out_of_reach_is_said_and_has_no_row(made):
    out = [record for record in made.lock["targets"] if record["budget"] is None]
    assert [(record["methods"], record["flops"]) for record in out] == [(["vertical-slash"], 0.3)]
    (line,) = unmet(made.lock["targets"])
    assert "vertical-slash on lm cannot have 0.3 of the flops of prompt" in line
    assert f"{out[0]['least']:.3f}" in line
    assert len(made.lock["targets"]) == 4
    json.dumps(made.lock, allow_nan=False)


def test_of_steps_that_pass_a_target_by_the_nearest_is_said():
    record = {"methods": ["mustafar"], "system": "lm", "bytes": 0.6, "request": "decode", "budget": None}
    (line,) = unmet([record | {"least": 0.335, "most": 1.0, "nearest": 0.595}])
    assert line.endswith("it goes in steps, of which the nearest is 0.595")


def test_the_stored_suite_needs_no_solving_and_plans_the_same_cells(made):
    again = plan(Suite.model_validate(json.loads(json.dumps(made.suite.model_dump(mode="json")))))
    assert [cell.id for cell in again.cells] == [cell.id for cell in made.cells]
    assert [cell.placement.facts for cell in again.cells] == [cell.placement.facts for cell in made.cells]
    assert "targets" not in again.lock


def test_an_equal_budget_is_the_same_cell(made):
    cell = next(cell for cell in made.cells if cell.placement.label.startswith("vertical"))
    plain = suite(
        methods=[{"method": "vertical-slash", "budgets": {"sparsity": cell.spec.stack[0].budget["sparsity"]}}]
    )
    assert cell.id in {other.id for other in plan(read(plain)).cells}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"request": ""}, "grids.0.methods.0", "name it"),
        ({"request": "prompts"}, "grids.0.methods.0", "unknown request"),
        ({"methods": [{"method": "flexprefill", "budgets": {"flops": 0.9}}]}, "grids.0.methods.0.budgets.flops", "predicted"),
        ({"methods": [{"method": "a-shape", "budgets": {"flops": 1.5}}]}, "grids.0.methods.0.budgets.flops", "at most 1"),
        ({"baseline": "a-shape 0.7 flops"}, "grids.0.baseline", "unknown row"),
    ],
)  # fmt: skip
def test_wrong_targets_name_their_place(changes, key, message):
    with pytest.raises(InputError) as caught:
        read(suite(**changes))
    assert f": {key}: " in caught.value.message
    assert message in caught.value.message


def test_one_target_a_stack():
    two = [{"method": "magnitude", "budget": {"flops": 0.9}}, {"method": "a-shape", "budget": {"flops": 0.7}}]
    with pytest.raises(InputError, match="one member of a stack"):
        plan(read(suite(methods=[{"stack": two}])))


def test_a_grid_that_reaches_nothing_keeps_its_baseline():
    made = plan(read(suite(methods=[{"method": "a-shape", "budgets": {"flops": 0.2}}])))
    assert [cell.placement.label for cell in made.cells] == ["dense"]


def test_the_packages_suites_name_their_requests():
    assert {"isoflop-attention", "isoflop-families", "isoflop-models", "long-context"} <= set(names())
    wide = load_suite("long-context")
    methods = {entry.method for grid in wide.grids for entry in grid.methods if len(list(entry.stacks())) == 4}
    lengths = [{entry.task.rpartition("-")[2] for entry in grid.tasks} for grid in wide.grids]
    assert len(methods) >= 15
    assert lengths == [{"512", "1024", "2048"}, {"1024", "2048", "4096"}]
    assert all(entry.limit is None or entry.limit >= 100 for grid in wide.grids for entry in grid.tasks)
