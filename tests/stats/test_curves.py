import numpy as np
import pytest
from scipy import optimize

from sparsebench.errors import InputError
from sparsebench.stats import find_breakpoint, fit_trend
from sparsebench.stats.curves import fit, logistic, two_lines

LEVELS = np.linspace(0.05, 0.8, 16)


def observed(curve: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return curve + rng.normal(0, 0.5, (300, 1)) + rng.normal(0, noise, (300, 16))


def test_two_lines_are_found():
    result = find_breakpoint(LEVELS, observed(3 + 0.1 * LEVELS + 3 * np.maximum(LEVELS - 0.47, 0), 0.05), resamples=500)
    assert result.low <= 0.47 <= result.high
    assert result.high - result.low < 0.05
    assert result.slope_before == pytest.approx(0.1, abs=0.15)
    assert result.slope_after == pytest.approx(3.1, abs=0.15)
    assert result.supported


@pytest.mark.parametrize(
    "curve",
    [3 + 0.01 * np.exp(6 * LEVELS), 3 + 1 / (1 + np.exp(-(LEVELS - 0.5) / 0.1)), 3 + LEVELS**2, 3 + LEVELS],
    ids=["exponential", "logistic", "quadratic", "line"],
)
def test_smooth_curves_have_no_breakpoint(curve: np.ndarray):
    assert not find_breakpoint(LEVELS, observed(curve, 0.1), resamples=500).supported


def test_breakpoint_intervals_cover():
    curve = 0.1 * LEVELS + 1.5 * np.maximum(LEVELS - 0.43, 0)
    found = [find_breakpoint(LEVELS, observed(curve, 0.8, seed), resamples=300, seed=seed) for seed in range(40)]
    assert np.mean([result.low <= 0.43 <= result.high for result in found]) >= 0.87


def test_breakpoint_does_not_depend_on_the_order_of_clustered_samples():
    values = observed(np.maximum(LEVELS - 0.4, 0), 0.5)
    labels = np.arange(300) // 5
    order = np.random.default_rng(1).permutation(300)
    one = find_breakpoint(LEVELS, values, clusters=labels, resamples=300)
    other = find_breakpoint(LEVELS, values[order], clusters=labels[order], resamples=300)
    assert (one.at, one.low, one.high) == pytest.approx((other.at, other.low, other.high), abs=1e-5)


@pytest.mark.parametrize(("middle", "width"), [(0.41, 0.07), (0.9, 0.1), (0.0, 0.15), (0.2, 0.03)])
def test_logistic_fit_is_as_good_as_a_local_search(middle: float, width: float):
    def shape(x, low, height, middle, width):
        return low + height / (1 + np.exp(-(x - middle) / width))

    curve = shape(LEVELS, 2, -0.8, middle, width) + np.random.default_rng(0).normal(0, 0.01, 16)
    fitted = fit(LEVELS, curve, logistic(LEVELS)).predict(LEVELS)
    start = (2, -0.8, middle, width)
    reference = shape(LEVELS, *optimize.curve_fit(shape, LEVELS, curve, start, maxfev=20_000)[0])
    assert ((curve - fitted) ** 2).sum() <= 1.01 * ((curve - reference) ** 2).sum()


def test_two_lines_fit_is_exact():
    found = fit(LEVELS, np.maximum(LEVELS - 0.3123, 0), two_lines(LEVELS))
    assert found.nonlinear[0] == pytest.approx(0.3123, abs=1e-5)
    assert found.linear == pytest.approx([0, 0, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        (LEVELS[:5], np.ones((10, 5))),
        (LEVELS[::-1], np.ones((10, 16))),
        (LEVELS, np.ones((10, 15))),
        (LEVELS, np.full((10, 16), np.nan)),
    ],
)
def test_breakpoint_refuses_what_it_cannot_fit(levels: np.ndarray, values: np.ndarray):
    with pytest.raises(InputError):
        find_breakpoint(levels, values)


def test_power_law_is_recovered():
    x = np.array([1e6, 1e7, 1e8, 1e9, 1e10])
    trend = fit_trend(x, 5 * x**-0.1, form="power", hold_out=2)
    assert trend.slope == pytest.approx(-0.1)
    assert np.exp(trend.intercept) == pytest.approx(5)
    assert trend.predicted == pytest.approx(5 * x[3:] ** -0.1)
    assert trend.error < 1e-9 < trend.unchanged_error


def test_prediction_intervals_cover():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e6, 1e9, 7)
    inside = []
    for _ in range(500):
        y = 1 + 0.2 * np.log(x) + rng.normal(0, 0.1, 7)
        trend = fit_trend(x, y, form="log-linear")
        inside.append(trend.predicted_low[0] <= y[-1] <= trend.predicted_high[0])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_a_broken_trend_foretells_nothing():
    x = np.array([1e6, 3e6, 1e7, 3e7, 1e8])
    y = np.log(x)
    assert fit_trend(x, y + np.array([0.01, -0.01, 0.01, -0.01, 0.0]), form="log-linear").foretells
    y[-1] = y[-2]
    assert not fit_trend(x, y, form="log-linear").foretells


@pytest.mark.parametrize(
    ("x", "y", "form"),
    [
        ([1, 2, 3], [1, 2, 3], "power"),
        ([0, 1, 2, 3], [1, 2, 3, 4], "log-linear"),
        ([1, 2, 3, 4], [1, 2, -3, 4], "power"),
    ],
)
def test_trend_refuses_what_it_cannot_fit(x, y, form):
    with pytest.raises(InputError):
        fit_trend(x, y, form=form)
