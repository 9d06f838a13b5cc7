import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.stats import Comparison, Margin, compare, compare_many, mcnemar, mde_binary, required_n_binary

NUMBERS = [f.name for f in dataclasses.fields(Comparison) if f.type == "float"]


def answers(n: int, lost: int, gained: int, right: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Right-or-wrong answers with given flips."""
    dense = (np.arange(n) < right * n).astype(float)
    sparse = dense.copy()
    sparse[:lost] = 0
    sparse[n - gained :] = 1
    return dense, sparse


def alike(one: Comparison, other: Comparison) -> bool:
    same = all(getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, nan_ok=True) for name in NUMBERS)
    return same and (one.verdict, one.lost, one.gained, one.n) == (other.verdict, other.lost, other.gained, other.n)


# Verdicts


def test_a_clear_loss_has_regressed():
    result = compare(*answers(1000, lost=80, gained=20), kind="binary", margin=Margin(0.02))
    assert result.verdict == "regressed"
    assert (result.lost, result.gained, result.discordance) == (80, 20, 0.1)
    assert result.delta == pytest.approx(-0.06)
    assert result.delta_high < 0 < result.loss_bound
    exact = mcnemar(80, 20)
    assert (result.p, result.mid_p) == pytest.approx((exact.p, exact.mid_p))
    assert (result.p_regression, result.p_improvement) == (exact.p_lost, exact.p_gained)


def test_a_clear_gain_has_improved():
    assert compare(*answers(1000, lost=20, gained=80), kind="binary").verdict == "improved"


def test_few_flips_among_many_are_non_inferior():
    result = compare(*answers(2000, lost=10, gained=10), kind="binary", margin=Margin(0.01))
    assert result.verdict == "non-inferior"
    assert result.equivalent
    assert result.loss_bound < 0.01
    assert result.p_noninferior < 0.05


def test_a_real_loss_within_the_margin_is_non_inferior_and_says_so():
    result = compare(*answers(4000, lost=60, gained=20), kind="binary", margin=Margin(0.02))
    assert result.verdict == "non-inferior"
    assert result.p_regression < 0.05
    assert "the loss is real" in result.reason


def test_too_few_samples_are_inconclusive_with_the_number_needed():
    result = compare(*answers(200, lost=5, gained=5), kind="binary", margin=Margin(0.01))
    assert result.verdict == "inconclusive"
    assert result.mde == pytest.approx(mde_binary(0.05, 200))
    assert result.required_n == required_n_binary(0.05, 0.01)
    assert "underpowered" in result.reason
    assert f"{result.required_n:,}" in result.reason


def test_enough_samples_can_still_be_undecided():
    result = compare(*answers(2000, lost=60, gained=40), kind="binary", margin=Margin(0.015), alpha=0.02)
    assert result.verdict == "inconclusive"
    assert "undecided" in result.reason


@pytest.mark.parametrize(("n", "verdict"), [(100, "inconclusive"), (340, "inconclusive"), (400, "non-inferior")])
def test_identical_answers_prove_only_what_n_can_show(n: int, verdict: str):
    dense, _ = answers(n, 0, 0)
    result = compare(dense, dense, kind="binary", margin=Margin(0.01))
    assert result.verdict == verdict
    assert 3 / n < result.loss_bound < 4 / n
    assert result.mde >= 3 / n
    assert 350 < result.required_n < 380
    assert (result.p, result.delta, result.discordance) == (1, 0, 0)


def test_identical_answers_in_few_clusters_prove_less():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 50)
    dense = (rng.random(1000) < rng.random(20)[clusters]).astype(float)
    loose, tight = Margin(0.1), Margin(0.01)
    assert compare(dense, dense, kind="binary", margin=tight).verdict == "non-inferior"
    assert compare(dense, dense, kind="binary", margin=tight, clusters=clusters).verdict == "inconclusive"
    assert compare(dense, dense, kind="binary", margin=loose, clusters=clusters).verdict == "non-inferior"


@pytest.mark.parametrize(("n", "verdict"), [(200, "inconclusive"), (1000, "non-inferior")])
def test_identical_scores_are_bounded_by_their_range(n: int, verdict: str):
    scores = np.linspace(0, 1, n)
    result = compare(scores, scores, margin=Margin(0.01))
    assert result.verdict == verdict
    assert result.loss_bound == pytest.approx(1 - 0.05 ** (1 / n))


def test_constant_scores_say_nothing_about_the_size_of_a_change():
    assert compare(np.ones(500), np.ones(500), margin=Margin(0.1)).verdict == "inconclusive"


def test_a_few_changed_samples_do_not_pass_for_a_small_spread():
    dense = np.random.default_rng(0).random(100)
    sparse = dense.copy()
    sparse[:2] = 0
    result = compare(dense, sparse, margin=Margin(0.03))
    assert result.verdict == "inconclusive"
    assert "share changed" in result.method


def test_without_a_margin_nothing_is_non_inferior():
    result = compare(*answers(2000, 1, 1), kind="binary")
    assert (result.verdict, result.margin) == ("inconclusive", None)
    assert math.isnan(result.p_noninferior)
    assert "no margin" in result.reason


def test_a_margin_below_twice_the_noise_confirms_nothing():
    data = answers(5000, 10, 10)
    assert compare(*data, kind="binary", margin=Margin(0.01), noise=0.005).verdict == "non-inferior"
    result = compare(*data, kind="binary", margin=Margin(0.01), noise=0.006)
    assert result.verdict == "inconclusive"
    assert "noise" in result.reason


def test_a_loss_within_the_noise_is_no_regression():
    data = answers(5000, 120, 60)
    assert compare(*data, kind="binary", margin=Margin(0.001)).verdict == "regressed"
    assert compare(*data, kind="binary", margin=Margin(0.001), noise=0.02).verdict == "inconclusive"


def test_without_signal_there_is_no_verdict():
    result = compare(*answers(400, 60, 5, right=0.27), kind="binary", margin=Margin(0.05), chance=0.25)
    assert result.verdict == "inconclusive"
    assert "no signal" in result.reason


def test_a_collapse_cannot_hide_in_the_margin():
    # Accuracy .35 over a chance of .25: losing everything would be ten points.
    data = answers(1000, 5, 5, right=0.35)
    assert compare(*data, kind="binary", margin=Margin(0.05), chance=0.25).verdict == "non-inferior"
    result = compare(*data, kind="binary", margin=Margin(0.1), chance=0.25)
    assert result.verdict == "inconclusive"
    assert "collapse" in result.reason


def test_one_cluster_says_nothing():
    result = compare(*answers(500, 100, 0), kind="binary", margin=Margin(0.01), clusters=["a"] * 500)
    assert result.verdict == "inconclusive"
    assert "one cluster" in result.reason
    assert math.isnan(result.delta_low) and math.isnan(result.p)


# Missing and infinite values


def test_samples_without_part_in_the_metric_are_dropped():
    dense, sparse = answers(1000, 30, 20)
    gap = np.arange(1000) % 3 == 0
    kept = compare(dense[~gap], sparse[~gap], kind="binary", margin=Margin(0.02))
    dense[gap] = sparse[gap] = np.nan
    result = compare(dense, sparse, kind="binary", margin=Margin(0.02))
    assert alike(result, kept)
    assert result.unpaired == 0


def test_what_only_one_system_has_forbids_a_good_verdict():
    dense, sparse = answers(2000, 2, 2)
    sparse[:3] = np.nan
    result = compare(dense, sparse, kind="binary", margin=Margin(0.05))
    assert (result.verdict, result.unpaired, result.n) == ("inconclusive", 3, 1997)
    sparse[600:1200] = 1
    assert compare(dense, sparse, kind="binary").verdict == "inconclusive"


def test_an_infinite_loss_has_regressed():
    nll = np.random.default_rng(0).normal(3, 0.5, 50)
    broken = nll.copy()
    broken[7] = np.inf
    settings = {"transform": "exp", "higher_is_better": False, "margin": Margin(0.01, "relative"), "resamples": 99}
    result = compare(nll, broken, **settings)
    assert (result.verdict, result.p_regression) == ("regressed", 0)
    assert compare(broken, nll, **settings).verdict == "inconclusive"
    both = compare_many(nll, np.stack([broken, nll + 0.1], axis=1), **settings)
    assert alike(both[1], compare(nll, nll + 0.1, **settings))


def test_no_samples_at_all():
    result = compare([np.nan, 1.0], [1.0, np.nan], margin=Margin(0.1))
    assert (result.verdict, result.n, result.unpaired) == ("inconclusive", 0, 2)
    assert compare([], []).verdict == "inconclusive"


# Scales


def test_perplexity_is_compared_by_its_ratio():
    rng = np.random.default_rng(1)
    weight = rng.integers(500, 1000, 300).astype(float)
    nll = rng.normal(3, 0.5, 300)
    change = rng.normal(0.004, 0.01, 300)
    result = compare(
        nll * weight,
        (nll + change) * weight,
        weight_dense=weight,
        transform="exp",
        higher_is_better=False,
        margin=Margin(0.01, "relative"),
    )
    mean = np.average(change, weights=weight)
    assert result.relative == pytest.approx(math.expm1(mean))
    assert result.delta == pytest.approx(result.dense * result.relative)
    half = 1.96 * change.std() / math.sqrt(300)
    assert result.relative_low == pytest.approx(math.expm1(mean - half), rel=0.2)
    assert result.relative_high == pytest.approx(math.expm1(mean + half), rel=0.2)
    assert result.margin == pytest.approx(0.01 * result.dense)
    assert result.verdict == "non-inferior"
    assert result.p_regression < 0.001
    assert 0.004 < result.loss_bound / result.dense < 0.006


def test_the_interval_of_a_perplexity_agrees_with_its_verdict():
    """One window that is far worse than the rest governs a difference of perplexities, not one of their logarithms."""
    rng = np.random.default_rng(0)
    nll = rng.normal(3, 0.3, 48)
    broken = nll + rng.normal(14, 4, 48)
    result = compare(nll, broken, transform="exp", higher_is_better=False, margin=Margin(0.05, "relative"))
    assert result.verdict == "regressed"
    assert 0 < result.delta_low < result.delta < result.delta_high
    assert result.delta_low == pytest.approx(result.dense * result.relative_low)
    assert result.delta_high == pytest.approx(result.dense * result.relative_high)


@pytest.mark.parametrize("transform", ["identity", "exp"])
def test_a_side_of_which_nothing_is_known_has_no_end(transform):
    result = compare([3.0], [3.5], transform=transform, margin=Margin(0.1))
    assert all(math.isnan(end) for end in (result.delta_low, result.delta_high, result.relative_low))


@given(st.integers(0, 1_000), st.sampled_from([0.02, 0.5, 5.0]))
@settings(max_examples=40)
def test_no_perplexity_whose_interval_holds_zero_is_better_or_worse(seed, spread):
    rng = np.random.default_rng(seed)
    nll = rng.normal(3, 0.5, 20)
    sparse = nll + rng.normal(0.4 * spread, spread, 20)
    # Tests have one side and intervals two.
    tested, shown = (compare(nll, sparse, transform="exp", resamples=400, alpha=alpha) for alpha in (0.025, 0.05))
    assert (tested.verdict in ("improved", "regressed")) <= (not shown.delta_low <= 0 <= shown.delta_high)


@pytest.mark.parametrize("n", [8, 20, 400])
@pytest.mark.parametrize("noise", [1e-9, 1e-7, 3e-6])
def test_rounding_changes_no_verdict(n: int, noise: float):
    """Whether sums were rounded one way or another, and even where all were rounded up."""
    rng = np.random.default_rng(n)
    weight = np.full(n, 255.0)
    nll = rng.normal(7.5, 0.1, n) * weight
    settings = {"weight_dense": weight, "transform": "exp", "higher_is_better": False, "resamples": 999}
    settings["margin"] = Margin(0.01, "relative")
    same = compare(nll, nll, **settings)
    for change in (rng.normal(0, 1, n), np.ones(n), -np.ones(n)):
        other = compare(nll, nll * (1 + noise * np.clip(change, -3, 3)), **settings)
        assert (other.verdict, other.p) == (same.verdict, same.p)
        assert (other.delta_low, other.delta_high) == pytest.approx((same.delta_low, same.delta_high))
    assert same.verdict == ("non-inferior" if n == 400 else "inconclusive")


def test_rounding_is_that_of_a_sample_beside_its_like():
    """A log-likelihood near 0 is the difference of logits that are not."""
    dense = np.array([1e-7, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    one, same = (compare(dense, dense + 1e-6 * changed, margin=Margin(0.1)) for changed in (np.ones(10), np.zeros(10)))
    assert (one.verdict, one.delta_high) == (same.verdict, pytest.approx(same.delta_high))
    assert compare(dense, dense + 1e-3, margin=Margin(0.1)).verdict == "improved"


def test_a_relative_margin_is_a_share_of_the_baseline():
    dense, sparse = answers(2000, 40, 20, right=0.4)
    relative = compare(dense, sparse, kind="binary", margin=Margin(0.05, "relative"))
    points = compare(dense, sparse, kind="binary", margin=Margin(0.02))
    assert relative.margin == pytest.approx(0.02)
    assert relative.loss_bound == pytest.approx(points.loss_bound)
    assert relative.p_noninferior == pytest.approx(points.p_noninferior)


def test_a_baseline_of_zero_has_no_relative_margin():
    result = compare(np.zeros(100), np.zeros(100), kind="binary", margin=Margin(0.05, "relative"))
    assert result.verdict == "inconclusive"
    assert math.isnan(result.relative)


def test_weights_of_the_two_systems_may_differ():
    rng = np.random.default_rng(2)
    dense_weight, sparse_weight = rng.integers(5, 20, (2, 100)).astype(float)
    dense, sparse = rng.random((2, 100))
    result = compare(
        dense * dense_weight, sparse * sparse_weight, weight_dense=dense_weight, weight_sparse=sparse_weight
    )
    assert result.dense == pytest.approx(np.average(dense, weights=dense_weight))
    assert result.sparse == pytest.approx(np.average(sparse, weights=sparse_weight))


# Invariances


@st.composite
def paired(draw) -> dict:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, kind = draw(st.integers(5, 60)), draw(st.sampled_from(["binary", "continuous"]))
    dense = (rng.random(n) < 0.6).astype(float) if kind == "binary" else rng.normal(1, 1, n)
    flip = rng.random(n) < draw(st.sampled_from([0.05, 0.4, 1.0]))
    other = (rng.random(n) < 0.5).astype(float) if kind == "binary" else dense + rng.normal(0, 0.2, n)
    clusters = rng.integers(0, 8, n) if draw(st.booleans()) else None
    return {"dense": dense, "sparse": np.where(flip, other, dense), "kind": kind, "clusters": clusters}


@settings(max_examples=40, deadline=None)
@given(paired(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(data: dict, random):
    order = list(range(len(data["dense"])))
    random.shuffle(order)
    shuffled = {**data, "dense": data["dense"][order], "sparse": data["sparse"][order]}
    if data["clusters"] is not None:
        shuffled["clusters"] = data["clusters"][order]
    rest = {"margin": Margin(0.1), "resamples": 300}
    assert alike(compare(**data, **rest), compare(**shuffled, **rest))


@settings(max_examples=40, deadline=None)
@given(paired())
def test_turning_a_metric_upside_down_turns_the_interval(data: dict):
    one = compare(**data, margin=Margin(0.1), resamples=300)
    turned = {"dense": 1 - data["dense"], "sparse": 1 - data["sparse"]}
    other = compare(**{**data, **turned}, margin=Margin(0.1), resamples=300, higher_is_better=False)
    assert other.delta == pytest.approx(-one.delta)
    if data["kind"] == "binary" or one.n_clusters < one.n:
        assert other.delta_low == pytest.approx(-one.delta_high, nan_ok=True)
        assert other.loss_bound == pytest.approx(one.loss_bound)
        assert other.p_regression == pytest.approx(one.p_regression, abs=0.01, nan_ok=True)
        assert other.verdict == one.verdict


@settings(max_examples=30, deadline=None)
@given(paired(), st.integers(2, 5))
def test_company_does_not_matter(data: dict, cells: int):
    rng = np.random.default_rng(0)
    others = rng.permuted(np.tile(data["sparse"][:, None], (1, cells)), axis=0)
    others[0, 1] = np.nan
    others[:, 0] = data["sparse"]
    rest = {"margin": Margin(0.1, "relative"), "resamples": 300, "kind": data["kind"], "clusters": data["clusters"]}
    alone = compare(data["dense"], data["sparse"], **rest)
    assert alike(compare_many(data["dense"], others, **rest)[0], alone)


@settings(max_examples=30, deadline=None)
@given(paired())
def test_every_comparison_is_coherent(data: dict):
    result = compare(**data, margin=Margin(0.1), resamples=300)
    assert not result.delta_low > result.delta
    assert not result.delta_high < result.delta
    assert result.loss_bound >= -result.delta - 1e-12
    assert (result.p_noninferior <= 0.05) == (result.loss_bound < 0.1)
    assert 0 <= result.p <= 1
    if result.verdict == "improved":
        assert result.delta > 0
    if result.verdict == "regressed":
        assert result.delta < 0
        assert result.p_noninferior > 0.05


def test_the_seed_decides():
    rng = np.random.default_rng(0)
    dense = rng.random(60)
    sparse = dense + rng.normal(0, 0.1, 60)
    first, again, other = (compare(dense, sparse, seed=seed, resamples=500) for seed in (1, 1, 2))
    assert first == again or alike(first, again)
    assert first.delta_low != other.delta_low


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"dense": [1, 2], "sparse": [1, 2, 3]}, "shape"),
        ({"dense": [1, 2], "sparse": [[1, 2]]}, "shape"),
        ({"dense": [0.5, 1], "sparse": [1, 1], "kind": "binary"}, "binary"),
        ({"dense": [1, 1], "sparse": [1, 1], "weight_dense": [1, 0]}, "weight"),
        ({"dense": [1, 1], "sparse": [1, 1], "clusters": ["a"]}, "cluster"),
        ({"dense": [1, 1], "sparse": [1, 1], "alpha": 0.7}, "alpha"),
    ],
)
def test_wrong_input_is_refused_in_words(arguments: dict, what: str):
    with pytest.raises(InputError, match=what):
        compare(**arguments)


@pytest.mark.parametrize("size", [0, -0.01, math.nan, math.inf])
def test_a_margin_is_positive(size: float):
    with pytest.raises(InputError):
        Margin(size)
