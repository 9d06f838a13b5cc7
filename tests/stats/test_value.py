import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.errors import InputError
from sparsebench.stats import signal, value_bounds, value_bounds_many


def test_independent_answers_have_the_exact_interval():
    answers = np.array([1.0] * 30 + [0.0] * 10)
    bounds = value_bounds(answers, kind="binary")
    reference = stats.binomtest(30, 40).proportion_ci(0.95)
    assert (bounds.lower(0.025), bounds.upper(0.025)) == pytest.approx((reference.low, reference.high))


def test_signal_is_the_exact_binomial_test():
    answers = np.array([1.0] * 36 + [0.0] * 64)
    result = signal(answers, 0.25, kind="binary")
    assert result.p == pytest.approx(stats.binomtest(36, 100, 0.25, "greater").pvalue)
    assert result.present
    assert not signal(answers, 0.33, kind="binary").present
    assert signal(answers, 0.0, kind="binary").present
    assert not signal(np.zeros(100), 0.0, kind="binary").present


def test_clusters_take_signal_away():
    answers = np.repeat([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 50)
    assert signal(answers, 0.25, kind="binary").present
    assert not signal(answers, 0.25, kind="binary", clusters=np.repeat(range(6), 50)).present


def test_clusters_that_are_all_right_count_as_clusters():
    answers, clusters = np.ones(300), np.repeat(range(3), 100)
    assert value_bounds(answers, kind="binary", clusters=clusters).lower(0.05) == pytest.approx(0.05 ** (1 / 3))
    assert signal(answers, 0.5, kind="binary", clusters=clusters).p == pytest.approx(0.125)


def test_perplexity_has_the_interval_of_its_logarithm():
    rng = np.random.default_rng(0)
    nll, weight = rng.normal(3, 0.4, 200), rng.integers(100, 1000, 200)
    log = value_bounds(nll * weight, weights=weight, resamples=999)
    ppl = value_bounds(nll * weight, weights=weight, transform="exp", resamples=999)
    assert ppl.lower(0.025) == pytest.approx(math.exp(log.lower(0.025)))
    assert signal(nll * weight, 30.0, weights=weight, transform="exp", higher_is_better=False).present
    assert not signal(nll * weight, 10.0, weights=weight, transform="exp", higher_is_better=False).present


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_and_missing_samples_do_not_matter(random):
    values = np.random.default_rng(1).normal(size=40)
    order = list(range(40))
    random.shuffle(order)
    one = value_bounds(values, resamples=400)
    other = value_bounds(np.append(values[order], np.nan), resamples=400)
    assert one.lower(0.05) == other.lower(0.05)
    clusters = np.arange(40) % 7
    one = value_bounds(values, clusters=clusters, resamples=400)
    other = value_bounds(values[order], clusters=clusters[order], resamples=400)
    assert one.upper(0.05) == pytest.approx(other.upper(0.05))


@pytest.mark.parametrize("transform", ["identity", "exp"])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.parametrize("clusters", [None, 1, 3, 40, 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_many_systems_get_to_the_last_bit_what_each_gets_alone(transform, kind, clusters, weighted):
    rng = np.random.default_rng(2)
    n, cells = 700, 30
    values = (rng.random((n, cells)) < 0.7).astype(float) if kind == "binary" else rng.normal(size=(n, cells))
    values[:, 0] = 1.0  # no cluster differs
    values[:, 1] = np.nan
    values[rng.random(n) < 0.2, 2:5] = np.nan
    weights = rng.integers(1, 5, (n, cells)).astype(float) if weighted else None
    labels = None if clusters is None else rng.integers(0, clusters, n)
    many = value_bounds_many(values, weights=weights, clusters=labels, kind=kind, transform=transform)
    for cell, bounds in enumerate(many):
        weight = None if weights is None else weights[:, cell]
        alone = value_bounds(values[:, cell], weights=weight, clusters=labels, kind=kind, transform=transform)
        for alpha in (0.025, 0.4):
            assert (bounds.lower(alpha), bounds.upper(alpha)) == (alone.lower(alpha), alone.upper(alpha))


def test_weights_may_be_those_of_all_systems():
    rng = np.random.default_rng(3)
    values, weights = rng.normal(size=(50, 2)), rng.random(50) + 0.1
    for cell, bounds in enumerate(value_bounds_many(values, weights=weights)):
        assert bounds.lower(0.05) == value_bounds(values[:, cell], weights=weights).lower(0.05)


def test_nothing_is_known_of_nothing():
    assert value_bounds([]).lower(0.05) == value_bounds([np.nan], transform="exp").lower(0.05) == -math.inf
    assert value_bounds([1.0, 0.0], clusters=["a", "a"]).upper(0.05) == math.inf
    assert not signal([np.nan], 0.5).present


def test_shapes_must_fit():
    with pytest.raises(InputError):
        value_bounds([1, 2, 3], weights=[1, 2])
    with pytest.raises(InputError):
        value_bounds([1, 2, 3], clusters=["a"])
    with pytest.raises(InputError):
        value_bounds([[1, 2, 3]])
    with pytest.raises(InputError):
        value_bounds_many([1, 2, 3])
    with pytest.raises(InputError):
        value_bounds_many([[1, 2, 3]], weights=[[1, 2]])


@pytest.mark.parametrize(("clusters", "size"), [(8, 12), (40, 5)])
def test_intervals_cover_with_clusters(clusters: int, size: int):
    rng = np.random.default_rng(clusters)
    index = np.repeat(np.arange(clusters), size)
    covered = []
    for _ in range(500):
        skill = rng.beta(3, 2, clusters)[index]
        bounds = value_bounds(rng.random(len(index)) < skill, kind="binary", clusters=index, resamples=399)
        covered.append(bounds.lower(0.025) <= 0.6 <= bounds.upper(0.025))
    assert np.mean(covered) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 500)
