from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.budget import INTEGERS, KINDS, Budget, parse_pattern
from sparsebench.errors import InputError, UnknownNameError

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.lists(st.integers(), max_size=2)
)


@given(st.sampled_from(KINDS), anything)
def test_any_value_gives_a_budget_or_an_error_for_people(kind, value):
    try:
        budget = Budget(kind, value)
    except InputError as error:
        assert kind in error.message
        return
    assert Budget.from_dict(budget.to_dict()) == budget
    assert budget.number > 0 or (kind == "sparsity" and budget.number == 0)
    assert budget.label


@given(st.sampled_from(INTEGERS), st.integers(1, 2**53))
def test_whole_numbers_may_be_written_as_floats(kind, value):
    if float(value) == value:
        assert Budget(kind, float(value)) == Budget(kind, value)
        assert isinstance(Budget(kind, float(value)).value, int)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sparsity", 1), ("sparsity", -0.1), ("sparsity", float("nan")), ("sparsity", 10**400), ("sparsity", True),
        ("tokens", 0), ("tokens", 1.5), ("tokens", float("inf")), ("tokens", float("nan")), ("coverage", 0),
        ("flops", 1.1), ("bytes", "half"), ("pattern", "4:4"), ("pattern", "0:4"), ("pattern", 124),
        ("pattern", "2:4:8"), ("pattern", "2:" + "9" * 5000), ("pattern", "٢:٤"), ("bits", None),
    ],
)  # fmt: skip
def test_out_of_range(kind, value):
    with pytest.raises(InputError, match=kind):
        Budget(kind, value)


def test_unknown_kind_offers_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        Budget("sparsty", 0.5)
    assert caught.value.nearest[0] == "sparsity"


@pytest.mark.parametrize("data", [{}, {"sparsity": 0.5, "tokens": 4}])
def test_a_budget_has_one_kind(data):
    with pytest.raises(InputError, match="one kind"):
        Budget.from_dict(data)


def test_labels_and_numbers():
    shown = {
        ("sparsity", 0.5): "50%",
        ("sparsity", 0.125): "12.5%",
        ("pattern", "2:4"): "2:4",
        ("tokens", 64): "64 tokens",
    }
    assert {key: Budget(*key).label for key in shown} == shown
    assert Budget("pattern", "1:4").number == 0.25
    assert Budget("pattern", "02:04") == Budget("pattern", "2:4")
    assert parse_pattern("2:4") == (2, 4)


def test_zero_has_no_sign():
    budget = Budget("sparsity", -0.0)
    assert (budget.label, str(budget.value)) == ("0%", "0.0")
