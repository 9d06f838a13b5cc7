import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.stats.clusters import ClusterSums, cluster_index, linearise
from sparsebench.stats.resample import bootstrap, bootstrap_counts, sign_flip
from sparsebench.stats.scale import DIFFERENCE, EXP_DIFFERENCE, RELATIVE


def sums(clusters: int, cells: int, *, same_weights: bool, seed: int = 0) -> ClusterSums:
    rng = np.random.default_rng(seed)
    weight = rng.integers(5, 50, (clusters, cells)).astype(float)
    other = weight if same_weights else weight + rng.integers(0, 5, (clusters, cells))
    dense = rng.normal(2, 0.5, (clusters, cells))
    sparse = dense + rng.normal(0.05, 0.2, (clusters, cells))
    return ClusterSums(dense * weight, weight, sparse * other, other)


@pytest.mark.parametrize("same_weights", [True, False])
@pytest.mark.parametrize("scale", [DIFFERENCE, EXP_DIFFERENCE, RELATIVE], ids=lambda scale: scale.name)
def test_bootstrap_equals_the_plain_loop(same_weights: bool, scale):
    data = sums(9, 3, same_weights=same_weights)
    result = bootstrap(data, [scale], resamples=50, seed=3)[0]
    counts = np.concatenate(list(bootstrap_counts(9, 50, 3))).astype(int)
    for row in range(50):
        drawn = np.repeat(np.arange(9), counts[row])
        copy = ClusterSums(data.dense[drawn], data.dense_weight[drawn], data.sparse[drawn], data.sparse_weight[drawn])
        by_sparse, by_dense = scale.gradient(copy.sparse_mean, copy.dense_mean)
        residual = copy.sparse - copy.sparse_mean * copy.sparse_weight
        scores = by_sparse * residual / copy.sparse_weight.sum(0)
        scores += by_dense * copy.dense_residual / copy.dense_weight.sum(0)
        np.testing.assert_allclose(result.estimates[row], scale.estimate(copy.sparse_mean, copy.dense_mean))
        np.testing.assert_allclose(result.errors[row], np.sqrt((scores**2).sum(0)))


def test_gradients_are_the_derivatives():
    sparse, dense, step = np.array([0.4, 2.1]), np.array([0.5, -2.0]), 1e-6
    for scale in (DIFFERENCE, EXP_DIFFERENCE, RELATIVE):
        by_sparse, by_dense = scale.gradient(sparse, dense)
        numeric = (scale.estimate(sparse + step, dense) - scale.estimate(sparse - step, dense)) / (2 * step)
        np.testing.assert_allclose(by_sparse, numeric, rtol=1e-6)
        numeric = (scale.estimate(sparse, dense + step) - scale.estimate(sparse, dense - step)) / (2 * step)
        np.testing.assert_allclose(by_dense, numeric, rtol=1e-6)
        effect = scale.estimate(sparse, dense)[0]
        assert scale.from_difference(sparse[0] - dense[0], dense[0]) == pytest.approx(effect)
        assert scale.to_difference(effect, dense[0]) == pytest.approx(sparse[0] - dense[0])


def test_tiny_changes_keep_their_digits():
    data = sums(40, 1, same_weights=True)
    change = np.random.default_rng(1).normal(0, 1e-8, (40, 1))
    tiny = ClusterSums(data.dense, data.dense_weight, data.dense + change * data.dense_weight, data.dense_weight)
    alone = ClusterSums(np.zeros_like(change), data.dense_weight, change * data.dense_weight, data.dense_weight)
    one, other = (bootstrap(x, [DIFFERENCE], resamples=200, seed=0)[0] for x in (tiny, alone))
    np.testing.assert_allclose(one.errors, other.errors, rtol=1e-5)


def test_draws_do_not_depend_on_the_company():
    data = sums(30, 8, same_weights=False)
    whole = bootstrap(data, [RELATIVE], resamples=3000, seed=5)[0]
    one = ClusterSums(data.dense[:, [6]], data.dense_weight[:, [6]], data.sparse[:, [6]], data.sparse_weight[:, [6]])
    alone = bootstrap(one, [RELATIVE], resamples=3000, seed=5)[0]
    np.testing.assert_allclose(alone.estimates[:, 0], whole.estimates[:, 6])
    again = bootstrap(data, [RELATIVE], resamples=3000, seed=6)[0]
    assert not np.allclose(again.estimates, whole.estimates)


def test_counts_are_multinomial():
    counts = np.concatenate(list(bootstrap_counts(20, 5000, 0)))
    assert counts.shape == (5000, 20)
    assert (counts.sum(1) == 20).all()
    assert counts.mean(0) == pytest.approx(np.ones(20), abs=0.06)
    assert counts.var(0) == pytest.approx(np.full(20, 0.95), abs=0.08)


@pytest.mark.parametrize("alternative", ["less", "greater", "two-sided"])
def test_sign_flip_is_the_exact_paired_permutation_test(alternative: str):
    rng = np.random.default_rng(2)
    dense, sparse = rng.integers(0, 5, (2, 11)).astype(float)
    ones = np.ones((11, 1))
    result = sign_flip(ClusterSums(dense[:, None], ones, sparse[:, None], ones), resamples=4096, seed=0)
    reference = stats.permutation_test(
        (sparse, dense),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        alternative=alternative,
        n_resamples=np.inf,
    )
    p = {"less": result.below, "greater": result.above, "two-sided": result.two_sided}[alternative]
    assert p[0] == pytest.approx(reference.pvalue)


def test_drawn_sign_flips_approach_the_exact_ones():
    data = sums(12, 4, same_weights=False, seed=8)
    exact, drawn = sign_flip(data, resamples=4096, seed=0), sign_flip(data, resamples=4000, seed=0)
    np.testing.assert_allclose(drawn.above, exact.above, atol=0.03)
    np.testing.assert_allclose(drawn.two_sided, exact.two_sided, atol=0.03)


def test_linearised_error_of_equal_clusters_is_the_t_test_of_their_means():
    rng = np.random.default_rng(6)
    dense, sparse = rng.normal(size=(2, 14, 7))
    weight = np.full((14, 1), 7.0)
    result = linearise(ClusterSums(dense.sum(1)[:, None], weight, sparse.sum(1)[:, None], weight), DIFFERENCE)
    reference = stats.ttest_rel(sparse.mean(1), dense.mean(1))
    assert result.df[0] == pytest.approx(13)
    assert result.estimate[0] / result.error[0] == pytest.approx(reference.statistic)


def test_a_dominant_cluster_lowers_the_degrees_of_freedom():
    weight = np.array([[100.0], *[[1.0]] * 20])
    data = ClusterSums(weight, weight, weight * np.random.default_rng(0).normal(size=(21, 1)), weight)
    assert linearise(data, DIFFERENCE).df[0] < 0.5


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=40))
def test_clusters_are_numbered_alike_whatever_their_labels_are(samples: list[tuple[int, bool]]) -> None:
    labels, present = (np.array(x) for x in zip(*samples, strict=True))
    for other in (labels.astype(float), np.char.zfill(labels.astype(str), 4)):
        (index, count), (wanted, clusters) = cluster_index(labels, present), cluster_index(other, present)
        assert count == clusters and index.tolist() == wanted.tolist()
