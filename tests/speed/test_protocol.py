"""How times become ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.speed.protocol import amdahl, compared, in_turns, interval

times = st.floats(0.01, 1e4)


def test_sides_take_turns_and_another_begins_each_time() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    got = in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # the first turn warms up
    assert got == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_ratios_are_paired_by_repetition() -> None:
    # A machine that becomes ten times slower half way leaves the paired ratio as it is.
    dense, sparse = [10.0] * 5 + [100.0] * 5, [5.0] * 5 + [50.0] * 5
    side = compared({"dense": dense, "sparse": sparse}, "dense", {"sparse": 4.0})["sides"]["sparse"]
    assert side["ratio"] == 2 and side["ratio_interval"] == (2, 2) and side["share_of_nominal"] == 0.5


@given(st.lists(times, min_size=1, max_size=20))
def test_the_interval_is_within_the_times(values: list[float]) -> None:
    low, high = interval(values)
    assert min(values) <= low <= high <= max(values)
    assert interval(values) == (low, high)


@given(st.floats(0, 0.99), st.floats(1, 100))
def test_amdahl_is_between_nothing_and_the_bound(share: float, ratio: float) -> None:
    assert 1 <= amdahl(share, ratio) * (1 + 1e-12) and amdahl(share, ratio) <= amdahl(share) * (1 + 1e-12)


def test_amdahl_by_hand() -> None:
    assert amdahl(0.8) == pytest.approx(5) and amdahl(0.5, 2) == pytest.approx(4 / 3) and amdahl(1.0) == float("inf")


def test_unpaired_times_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        compared({"dense": [1.0, 2.0], "sparse": [1.0]}, "dense")
    with pytest.raises(InputError, match="cannot be compared"):
        compared({"sparse": [1.0]}, "dense")
