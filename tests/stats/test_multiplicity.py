import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.errors import InputError
from sparsebench.stats import benjamini_hochberg, holm, intersection_union, largest_safe

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_holm_by_hand():
    # .01 x 4, then .02 x 3, .03 x 2 raised to .06, .04 raised to .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_benjamini_hochberg_of_the_paper():
    # Benjamini and Hochberg 1995, section 3.2: of 15 p values the procedure rejects four at .05, Bonferroni's three.
    p = [1e-4, 4e-4, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759, 1.0]
    assert (benjamini_hochberg(p) <= 0.05).sum() == 4
    assert (holm(p) <= 0.05).sum() == 3


@given(p_values)
def test_adjustments_keep_the_order_and_only_raise(p: list[float]):
    order = np.argsort(p)
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert (np.diff(adjusted[order]) >= 0).all()
        assert (adjusted >= np.array(p) - 1e-12).all()
        assert (adjusted <= 1).all()
    assert (holm(p) >= benjamini_hochberg(p) - 1e-12).all()


@given(p_values, st.integers(0, 30))
def test_untested_ones_are_no_members_of_the_family(p: list[float], place: int):
    gap = min(place, len(p))
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust([*p[:gap], float("nan"), *p[gap:]])
        assert np.isnan(adjusted[gap])
        np.testing.assert_array_equal(np.delete(adjusted, gap), adjust(p))


def test_benjamini_hochberg_agrees_with_scipy():
    p = np.random.default_rng(0).random(40) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def test_holm_controls_the_family_with_correlated_tests():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(4000, 1)) * 0.7 + rng.normal(size=(4000, 10)) * np.sqrt(0.51)
    z[:, :3] += 3
    wrong = [(holm(stats.norm.sf(row))[3:] <= 0.05).any() for row in z]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("p", [[0.2, 1.1], [-0.1], [[0.1, 0.2]]])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(InputError):
        holm(p)


def test_largest_safe_stops_at_the_first_failure():
    result = largest_safe([0.5, 0.1, 0.3, 0.2], [0.001, 0.01, 0.2, 0.04])
    assert result.level == 0.2
    assert result.first_failure == 0.3
    assert result.untested == (0.5,)


def test_largest_safe_at_the_ends():
    assert largest_safe([0.1, 0.2], [0.5, 0.0]).level is None
    assert largest_safe([0.1, 0.2], [float("nan"), 0.0]).level is None
    assert largest_safe([0.1, 0.2], [0.0, 0.05]) == largest_safe([0.2, 0.1], [0.05, 0.0])
    assert largest_safe([0.1, 0.2], [0.0, 0.05]).level == 0.2
    assert largest_safe([0.1, 0.2], [0.0, 0.05]).first_failure is None


@pytest.mark.parametrize(("levels", "p"), [([0.1, 0.1], [0.1, 0.2]), ([0.1], [0.1, 0.2])])
def test_largest_safe_refuses_what_is_ambiguous(levels, p):
    with pytest.raises(InputError):
        largest_safe(levels, p)


def test_largest_safe_errs_in_one_sequence_of_twenty_at_most():
    # Level k is safe up to 3 and exactly at the margin above: a wrong claim needs level 4 to pass.
    p = np.random.default_rng(2).random((4000, 6))
    p[:, :3] *= 0.01
    wrong = [(largest_safe(range(6), row).level or 0) >= 3 for row in p]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)


def test_all_tasks_must_pass():
    assert intersection_union([0.01, 0.04, 0.002]) == 0.04
    assert intersection_union([0.01, float("nan")]) == 1
    assert intersection_union([]) == 1
