from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench import identity
from sparsebench.records import CellSpec, MemberSpec, SystemSpec, TaskSpec

SPEC = CellSpec(
    system=SystemSpec(kind="causal-lm", ref="path:m", fingerprint="f", dtype="float32"),
    stack=[MemberSpec(method="wanda", version=1, knobs={"compare_group": "row"}, budget={"sparsity": 0.5})],
    task=TaskSpec(id="t", version=1, definition="d", data="h"),
    protocol="prompt",
    calibration={"data": "prose", "hash": "c"},
)

CHANGES = [
    {"system": {"kind": "lexical"}}, {"system": {"ref": "path:n"}}, {"system": {"fingerprint": "g"}},
    {"system": {"dtype": "bfloat16"}}, {"system": {"replica": "A/A batch 64"}},
    {"stack": []}, {"stack": [{"method": "magnitude"}]}, {"stack": [{"version": 2}]}, {"stack": [{"knobs": {}}]},
    {"stack": [{"budget": {"sparsity": 0.6}}]}, {"stack": [{"budget": {"pattern": "2:4"}}]}, {"stack": [{"budget": None}]},
    {"stack": [{"code": "package 1.0 0123456789abcdef"}]},
    {"task": {"id": "u"}}, {"task": {"version": 2}}, {"task": {"definition": "e"}}, {"task": {"data": "i"}},
    {"task": {"limit": 3}}, {"mode": "executed"}, {"protocol": "window"}, {"calibration": None},
    {"calibration": {"data": "prose", "hash": "other"}}, {"seed": 1},
]  # fmt: skip

names = st.text(st.characters(codec="utf-8"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def shuffled(value, seed):
    if isinstance(value, dict):
        items = list(value.items())
        random.Random(seed).shuffle(items)
        return {key: shuffled(part, seed) for key, part in items}
    return [shuffled(part, seed) for part in value] if isinstance(value, list) else value


@given(st.dictionaries(names, json_values, max_size=6), st.integers())
def test_the_id_does_not_depend_on_the_order_of_keys_nor_on_a_way_through_json(spec, seed):
    wanted = identity.cell_id(spec)
    assert identity.cell_id(shuffled(spec, seed)) == wanted
    assert identity.cell_id(json.loads(json.dumps(spec))) == wanted
    assert len(wanted) == 16


@given(st.sampled_from(sorted(identity.EXCLUDED)), json_values)
def test_how_a_cell_is_run_or_shown_plays_no_part(field, value):
    plain = SPEC.plain()
    assert field not in plain
    assert identity.cell_id({**plain, field: value}) == identity.cell_id(plain)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_changes_numbers_changes_the_id(change):
    plain = SPEC.plain()
    for key, value in change.items():
        if isinstance(value, dict) and key != "calibration":
            plain[key] = {**plain[key], **value}
        elif key == "stack" and value:
            plain[key] = [{**plain[key][0], **value[0]}]
        else:
            plain[key] = value
    other = CellSpec.model_validate(plain)
    assert identity.cell_id(other.plain()) != identity.cell_id(SPEC.plain())


def test_every_field_of_a_specification_was_changed_above():
    changed = {key for change in CHANGES for key in change}
    assert changed == set(CellSpec.model_fields)
    for key, model in (("system", SystemSpec), ("task", TaskSpec)):
        assert {field for c in CHANGES if key in c for field in c[key]} == set(model.model_fields)
    assert {field for c in CHANGES for member in c.get("stack", []) for field in member} == set(MemberSpec.model_fields)


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        identity.cell_id({"knobs": {"a": float("nan")}})


def test_the_id_of_a_fixed_specification_stays():
    # Changes only together with identity.VERSION: stored results would be computed again.
    assert (identity.VERSION, identity.cell_id(SPEC.plain())) == (1, "9fbcb7bdd21c01e1")


@given(st.lists(names | st.integers(), min_size=1, max_size=4))
def test_seeds_are_63_bits_and_depend_on_all_parts(parts):
    seed = identity.seed_of(*parts)
    assert 0 <= seed < 2**63
    assert seed == identity.seed_of(*parts)
    assert seed != identity.seed_of(*parts, "more")
