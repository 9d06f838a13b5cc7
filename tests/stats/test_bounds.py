import bisect
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from sparsebench.stats import tost
from sparsebench.stats.bounds import Bounds, Mapped, Outermost, Proportion, Rare, Score, Student, Studentised, Unknown
from sparsebench.stats.scale import exp, log

resampled = np.sort(np.append(np.random.default_rng(0).standard_t(5, 990), np.full(9, np.nan)))
METHODS: list[Bounds] = [
    Student(0.01, 0.02, 7.3),
    Studentised(0.01, 0.02, resampled),
    Score(12, 20, 400),
    Score(0, 0, 400),
    Score(400, 0, 400),
    Proportion(37, 90),
    Proportion(0, 12.5),
    Rare(0.01, 0.02, 150.5, 0.7),
    Outermost([Student(0.01, 0.02, 7.3), Score(12, 20, 400)]),
    Mapped(Student(0.01, 0.02, 7.3), exp, log),
    Unknown(),
]


@pytest.mark.parametrize("bounds", METHODS, ids=lambda bounds: type(bounds).__name__)
@given(x=st.floats(-0.999, 0.999), alpha=st.floats(0.002, 0.4))
def test_intervals_and_tests_agree(bounds: Bounds, x: float, alpha: float):
    low, high = bounds.lower(alpha), bounds.upper(alpha)
    assume(abs(x - low) > 1e-9 and abs(x - high) > 1e-9)
    assert (low > x) == (bounds.p_above(x) <= alpha)
    assert (high < x) == (bounds.p_below(x) <= alpha)


@pytest.mark.parametrize("bounds", METHODS, ids=lambda bounds: type(bounds).__name__)
def test_more_confidence_means_wider(bounds: Bounds):
    alphas = [0.005, 0.025, 0.05, 0.2, 0.4]
    lows, highs = [bounds.lower(a) for a in alphas], [bounds.upper(a) for a in alphas]
    assert lows == sorted(lows)
    assert highs == sorted(highs, reverse=True)
    assert all(low <= high for low, high in zip(lows, highs, strict=True))


def test_student_is_the_paired_t_test():
    a, b = np.random.default_rng(3).normal(size=(2, 25))
    change = a - b
    bounds = Student(change.mean(), change.std(ddof=1) / 5, 24)
    reference = stats.ttest_rel(a, b, alternative="greater")
    assert bounds.p_above(0) == pytest.approx(reference.pvalue)
    assert bounds.lower(0.05) == pytest.approx(reference.confidence_interval(0.95).low)


def test_score_without_correction_is_tango():
    # Airway data: 1 gained, 7 lost of 21. Fagerland, Lydersen and Laake 2014, table 7: -0.517 to -0.026.
    score = Score(1, 7, 21)
    assert score._z(-0.51723, 0) == pytest.approx(1.96, abs=1e-3)
    assert score._z(-0.02600, 0) == pytest.approx(-1.96, abs=1e-3)
    assert score.lower(0.025) < -0.51723
    assert score.upper(0.025) > -0.02600


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 100), st.floats(-0.6, 0.6))
def test_score_uses_the_restricted_maximum_likelihood(gained: int, lost: int, alike: int, x: float):
    assume(gained + lost + alike > 0 and abs(x) > 1e-3)
    n = gained + lost + alike

    def negative_log_likelihood(rate: float) -> float:
        terms = ((lost, rate), (gained, rate + x), (alike, 1 - 2 * rate - x))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -x), (1 - x) / 2
    rate = optimize.minimize_scalar(negative_log_likelihood, bounds=(low, high), options={"xatol": 1e-10}).x
    z = (gained - lost - n * x) / math.sqrt(n * (2 * rate + x - x * x))
    assert Score(gained, lost, n)._z(x, 0) == pytest.approx(z, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.1])
def test_score_never_exceeds_its_level(n: int, margin: float):
    # Exact: over all outcomes, with a true loss of just the margin, at several discordances.
    for discordance in (margin, 1.2 * margin, 2 * margin, 0.3):
        accepted = 0.0
        for k in range(n + 1):
            chance = stats.binom.pmf(k, n, discordance)
            if chance > 1e-5:
                # The test passes from some number of gained answers on: find it by bisection.
                gained = bisect.bisect_left(range(k + 1), -0.05, key=lambda g: -Score(g, k - g, n).p_above(-margin))
                accepted += chance * stats.binom.sf(gained - 1, k, (1 - margin / discordance) / 2)
        assert accepted <= 0.05


def test_no_discordance_needs_enough_samples():
    enough = next(n for n in range(100, 1000) if Score(0, 0, n).upper(0.05) < 0.01)
    assert 300 <= enough <= 370
    assert Rare(0, 0, 1000, 1).upper(0.05) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert Rare(0, 0, 1000, 0.4).lower(0.05) == pytest.approx(-0.4 * (1 - 0.05 ** (1 / 1000)))


def test_proportion_is_clopper_pearson():
    for hits, n in ((0, 10), (3, 10), (10, 10), (37, 90)):
        reference = stats.binomtest(hits, n).proportion_ci(0.95)
        assert Proportion(hits, n).lower(0.025) == pytest.approx(reference.low)
        assert Proportion(hits, n).upper(0.025) == pytest.approx(reference.high)
        assert Proportion(hits, n).p_above(0.25) == pytest.approx(stats.binomtest(hits, n, 0.25, "greater").pvalue)


def test_undefined_resamples_count_against_every_conclusion():
    t = np.sort(np.random.default_rng(1).normal(size=999))
    spoiled = np.append(t[:-60], np.full(60, np.nan))
    assert Studentised(0, 1, spoiled).lower(0.05) == -math.inf
    assert Studentised(0, 1, spoiled).upper(0.05) == math.inf
    assert Studentised(9, 1, spoiled).p_above(0) > 0.05


def test_tost_is_two_one_sided_t_tests():
    change = np.random.default_rng(4).normal(0.1, 1, 80)
    bounds = Student(change.mean(), change.std(ddof=1) / math.sqrt(80), 79)
    low = stats.ttest_1samp(change, -0.4, alternative="greater").pvalue
    high = stats.ttest_1samp(change, 0.4, alternative="less").pvalue
    assert tost(bounds, -0.4, 0.4) == pytest.approx(max(low, high))
