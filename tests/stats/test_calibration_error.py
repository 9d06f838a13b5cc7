"""Calibration errors: by hand, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.stats import calibration_error


def test_by_hand() -> None:
    # Two bins of two: (0, 0.5] holds 0.3 and 0.5, one right: |0.4 - 0.5|. (0.5, 1] holds 0.9 and 0.7, one right:
    # |0.8 - 0.5|. Each bin has half of the samples.
    found = calibration_error([0.3, 0.9, 0.5, 0.7], [0, 1, 1, 0], bins=2, resamples=50)
    assert found.error == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert found.gap == pytest.approx(0.6 - 0.5)
    assert found.n == 4
    assert found.low <= found.error <= found.high


def test_a_model_that_knows_how_sure_it_is_has_next_to_none() -> None:
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.2, 1, 20_000)
    right = generator.random(20_000) < sure
    assert calibration_error(sure, right, resamples=20).error < 0.02
    too_sure = calibration_error(np.sqrt(sure), right, resamples=20)
    assert too_sure.error == pytest.approx(too_sure.gap, abs=0.01)
    assert too_sure.gap > 0.1


def test_edges_belong_to_the_bin_below() -> None:
    one_bin = calibration_error([0.5, 0.4], [1, 0], bins=2, resamples=5)
    assert one_bin.error == pytest.approx(abs(0.45 - 0.5))
    assert calibration_error([0.0, 1.0], [0, 1], resamples=5).error == 0


def test_samples_without_part_do_not_count_and_clusters_widen() -> None:
    generator = np.random.default_rng(1)
    sure = np.repeat(generator.uniform(0.3, 1, 40), 25)
    right = np.repeat((generator.random(40) < 0.5).astype(float), 25)
    alone = calibration_error(sure, right)
    clustered = calibration_error(sure, right, clusters=np.repeat(np.arange(40), 25))
    assert alone.error == pytest.approx(clustered.error)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    more = calibration_error(np.append(sure, math.nan), np.append(right, 1.0))
    assert (more.error, more.n) == (pytest.approx(alone.error), alone.n)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_it_lies_between_the_gap_and_one(rows: list[tuple[float, bool]]) -> None:
    sure, right = zip(*rows, strict=True)
    found = calibration_error(sure, [float(r) for r in right], resamples=5)
    assert abs(found.gap) - 1e-12 <= found.error <= 1
    again = calibration_error(sure[::-1], [float(r) for r in right[::-1]], resamples=5)
    assert again.error == pytest.approx(found.error, abs=1e-12)


@pytest.mark.parametrize(("sure", "right"), [([], []), ([math.nan], [1.0]), ([0.5], [1.0, 0.0]), ([1.5], [1.0])])
def test_what_is_no_confidence_is_refused(sure: list[float], right: list[float]) -> None:
    with pytest.raises(InputError):
        calibration_error(sure, right)
