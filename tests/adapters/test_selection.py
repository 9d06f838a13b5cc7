from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.adapters import selection

# Few distinct values, so that most entries tie; both zeros, which must tie too.
VALUES = st.sampled_from([0.0, -0.0, 0.25, 1.0, 1.0000001, 3.5, 1e-42, 1e30, -2.0, -1e-42])


@st.composite
def scores(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    return torch.tensor(draw(st.lists(VALUES, min_size=rows * columns, max_size=rows * columns))).reshape(rows, columns)


def by_sorting(score: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.sort(score + 0.0, dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)


@settings(max_examples=150, deadline=None)
@given(scores())
def test_smallest_is_a_stable_sort(score: torch.Tensor) -> None:
    for count in range(score.shape[1] + 1):
        assert torch.equal(selection.smallest(score, count), by_sorting(score, count))


@settings(max_examples=60, deadline=None)
@given(scores())
def test_equal_scores_are_taken_in_order_where_rows_are_not_looked_at_first(score: torch.Tensor) -> None:
    for count in range(1, score.shape[1]):  # what a GPU does
        limit = selection._kth_smallest(score, count)
        assert torch.equal(selection._first_of_equals(score, limit, count), by_sorting(score, count))


@settings(max_examples=30, deadline=None)
@given(scores(), st.integers(1, 3), st.data())
def test_smallest_of_all_is_a_stable_sort_of_everything(score: torch.Tensor, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, score.numel()))
    parts = list(score.split(width))
    cut, room = selection.smallest_of_all(lambda: parts, count)
    chosen = []
    for part in parts:
        mask, room = selection.take_equal(part, cut, room)
        chosen.append(mask)
    assert room == 0
    assert torch.equal(torch.cat(chosen), by_sorting(score.reshape(1, -1), count).reshape(score.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zeros_of_either_sign_are_counted(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, -0.0, 1.0, -3.0], [2.0, 5e-5, 1.0, -1.0]], dtype=dtype)
    assert selection.zeros(x).tolist() == [2, 0]
    assert selection.zeros(x.T).tolist() == [1, 1, 0, 0]  # not contiguous
