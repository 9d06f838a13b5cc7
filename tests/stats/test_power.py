import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.stats import (
    design_effect,
    mcnemar,
    mde_binary,
    mde_continuous,
    power_of,
    required_n_binary,
    required_n_continuous,
)
from sparsebench.stats.bounds import Score


@pytest.mark.parametrize(("n", "points"), [(100, 5.6), (1000, 1.8), (3092, 1.0)])
def test_effects_at_five_per_cent_discordance(n: int, points: float):
    assert 100 * mde_binary(0.05, n) == pytest.approx(points, abs=0.05)


def test_one_per_cent_of_an_accuracy_of_444_needs_15_700_questions():
    assert required_n_binary(0.05, 0.01 * 0.444) == pytest.approx(15_700, abs=50)


@given(st.floats(0.001, 0.5), st.floats(0.002, 0.1), st.floats(1, 20))
def test_required_n_inverts_the_effect(discordance: float, margin: float, effect: float):
    n = required_n_binary(discordance, margin, design_effect=effect)
    assert mde_binary(discordance, n, design_effect=effect) <= margin * (1 + 1e-9)
    assert n == 1 or mde_binary(discordance, n - 1, design_effect=effect) >= margin * (1 - 1e-9)


def test_required_n_of_a_continuous_metric():
    n = required_n_continuous(0.2, 0.01)
    assert mde_continuous(0.2, n) == pytest.approx(0.01, rel=2e-3)
    assert mde_continuous(0.2, n, clusters=10) > 0.0105


def test_power_is_that_of_the_noncentral_t():
    assert power_of(2.4865 * 0.1, 0.1) == pytest.approx(0.8, abs=1e-3)
    # G*Power: one-sided paired t, dz .5, n 27, alpha .05 gives power .8118.
    assert power_of(0.5, 1 / np.sqrt(27), df=26) == pytest.approx(0.8118, abs=1e-4)


def test_mcnemar_and_score_have_the_power_foretold():
    # Exact over all outcomes: 1,000 questions, discordance .1, a true loss of the effect (McNemar), or none (score).
    n, discordance = 1000, 0.1
    effect = mde_binary(discordance, n)
    seen = confirmed = 0.0
    for k in range(70, 131):
        chance, ks = stats.binom.pmf(k, n, discordance), range(k + 1)
        lost = bisect.bisect_left(ks, -0.05, key=lambda x: -mcnemar(x, k - x).p_lost)
        seen += chance * stats.binom.sf(lost - 1, k, (1 + effect / discordance) / 2)
        gained = bisect.bisect_left(ks, -0.05, key=lambda x: -Score(x, k - x, n).p_above(-effect))
        confirmed += chance * stats.binom.sf(gained - 1, k, 0.5)
    assert seen == pytest.approx(0.8, abs=0.04)
    assert confirmed == pytest.approx(0.8, abs=0.04)


def test_design_effect_of_equal_clusters():
    # 1 + (m - 1) r, with m = 10 and r = .5.
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(4000), 10)
    values = rng.normal(size=4000)[index] + rng.normal(size=40_000)
    assert design_effect(values, np.ones(40_000), index, 4000) == pytest.approx(5.5, rel=0.05)
    assert design_effect(rng.normal(size=40_000), np.ones(40_000), index, 4000) == pytest.approx(1, abs=0.06)
    assert design_effect(np.ones(40_000), np.ones(40_000), index, 4000) == pytest.approx(10)
