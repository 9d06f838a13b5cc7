from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.metrics import Metric

NAN = math.nan


def value(columns, **options):
    return Metric(name="m", column="x", **options).value(pd.DataFrame(columns))


@pytest.mark.parametrize(
    ("columns", "options", "wanted"),
    [
        ({"x": [1.0, 0.0, 1.0, 1.0]}, {}, 0.75),
        ({"x": [1.0, NAN, 0.0]}, {}, 0.5),  # the second sample has no part in it
        ({"x": [NAN, NAN]}, {}, None),
        ({"x": []}, {}, None),
        ({"x": [6.0, 2.0], "x.weight": [3.0, 1.0]}, {}, 2.0),  # a ratio of sums, not a mean of ratios
        ({"x": [6.0, NAN], "x.weight": [3.0, 100.0]}, {}, 2.0),  # nor is its weight counted
        ({"x": [6.0, 1.0], "x.weight": [3.0, NAN]}, {}, None),  # a weight is missing: no number at all
        ({"x": [0.0], "x.weight": [0.0]}, {}, None),
        ({"x": [math.log(2) * 3, math.log(8)], "x.weight": [3.0, 1.0]}, {"transform": "exp"}, 2**1.5),
        ({"x": [math.inf, 1.0]}, {}, None),
    ],
)
def test_values_by_hand(columns, options, wanted):
    assert value(columns, **options) == (None if wanted is None else pytest.approx(wanted, rel=1e-12))


@pytest.mark.parametrize("loss", [709.5, 1e6, math.inf])
def test_a_perplexity_beyond_all_floats_is_the_largest_and_finite(loss):
    found = value({"x": [loss]}, transform="exp")
    assert found == math.exp(709)
    assert math.isfinite(found)


@given(st.lists(st.tuples(st.floats(-50, 50) | st.just(NAN), st.floats(0.1, 20)), min_size=1, max_size=20))
def test_the_order_of_samples_plays_no_part_and_doubling_them_neither(rows):
    x, weight = (np.array(column) for column in zip(*rows, strict=True))
    once = value({"x": x, "x.weight": weight})
    again = value({"x": np.concatenate([x, x[::-1]]), "x.weight": np.concatenate([weight, weight[::-1]])})
    assert (once is None) == bool(np.isnan(x).all())
    if once is not None:
        assert again == pytest.approx(once, rel=1e-9, abs=1e-9)
        assert once == pytest.approx(np.nansum(x) / weight[~np.isnan(x)].sum(), rel=1e-9, abs=1e-12)
