import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.stats import mcnemar

counts = st.integers(0, 200)


def test_airway_data():
    # Bentur et al. 2009, as analysed by Fagerland, Lydersen and Laake 2013, table 1: exact p .070, mid-p .039.
    result = mcnemar(lost=7, gained=1)
    assert result.p == pytest.approx(0.0703, abs=5e-5)
    assert result.mid_p == pytest.approx(0.0391, abs=5e-5)


@given(counts, counts)
def test_agrees_with_the_binomial_test(lost: int, gained: int):
    result = mcnemar(lost, gained)
    if lost + gained:
        assert result.p == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)
        assert result.p_lost == pytest.approx(stats.binomtest(lost, lost + gained, alternative="greater").pvalue)
        assert result.p_gained == pytest.approx(stats.binomtest(gained, lost + gained, alternative="greater").pvalue)
    else:
        assert (result.p, result.mid_p, result.p_lost, result.p_gained) == (1, 1, 1, 1)


@given(counts, counts)
def test_swapping_the_systems_swaps_the_sides(lost: int, gained: int):
    one, other = mcnemar(lost, gained), mcnemar(gained, lost)
    assert (one.p, one.mid_p) == (other.p, other.mid_p)
    assert (one.p_lost, one.p_gained) == (other.p_gained, other.p_lost)
    assert 0 <= one.mid_p <= one.p
