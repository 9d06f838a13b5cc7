"""What the methods promise, tried on thousands of simulated comparisons with a known truth.

Each replicate is a cell of one `compare_many`. An error rate may exceed its nominal value by the Monte-Carlo error of
the simulation (2.5 standard errors) and no more.
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from sparsebench.stats import Comparison, Margin, compare_many, mde_binary, mde_continuous

REPLICATES = 600
RESAMPLES = 599
SHAPES = [(6, 20), (12, 15), (40, 5), (200, 1)]


def at_most(rate: float) -> float:
    return rate + 2.5 * math.sqrt(rate * (1 - rate) / REPLICATES)


def covered(results: Sequence[Comparison], truth: float) -> float:
    return float(np.mean([not (r.delta_low > truth or r.delta_high < truth) for r in results]))


def rates(results: Sequence[Comparison], alpha: float = 0.05) -> dict[str, float]:
    return {
        "regression": float(np.mean([r.p_regression <= alpha for r in results])),
        "improvement": float(np.mean([r.p_improvement <= alpha for r in results])),
        "non-inferior": float(np.mean([r.p_noninferior <= alpha for r in results])),
    }


def perplexities(
    clusters: int, size: int, loss: float, rng: np.random.Generator, *, skewed: bool = False
) -> dict[str, object]:
    """Windows of documents: changes with a part common to each document, token counts as weights."""
    index = np.repeat(np.arange(clusters), size)
    shape = (len(index), REPLICATES)
    weight = np.broadcast_to(rng.integers(300, 1000, (len(index), 1)), shape).astype(float)
    common = (
        rng.exponential(0.02, (clusters, REPLICATES)) - 0.02 if skewed else rng.normal(0, 0.02, (clusters, REPLICATES))
    )
    dense = 3 + rng.normal(0, 0.3, (clusters, REPLICATES))[index] + rng.normal(0, 0.3, shape)
    sparse = dense + loss + common[index] + rng.normal(0, 0.02, shape)
    return {
        "dense": dense * weight,
        "sparse": sparse * weight,
        "weight_dense": weight,
        "clusters": index if size > 1 else None,
        "transform": "exp",
        "higher_is_better": False,
        "margin": Margin(0.02, "relative"),
        "resamples": RESAMPLES,
    }


def template_answers(
    clusters: int, size: int, loss: float, rng: np.random.Generator, *, flips: float = 0.1
) -> dict[str, object]:
    """Questions of templates, of which some suffer much more than others."""
    index = np.repeat(np.arange(clusters), size)
    shape = (len(index), REPLICATES)

    def flip_rate(mean: float) -> np.ndarray:
        return rng.beta(40 * mean, 40 * (1 - mean), (clusters, REPLICATES))[index]

    dense = rng.random(shape) < rng.beta(4, 4, (clusters, REPLICATES))[index]
    # Half of the answers are right, so that a flip rate among them counts half.
    change = rng.random(shape) < np.where(dense, flip_rate(flips + loss), flip_rate(flips - loss))
    return {
        "dense": dense.astype(float),
        "sparse": (dense ^ change).astype(float),
        "kind": "binary",
        "clusters": index,
        "margin": Margin(0.03),
        "resamples": RESAMPLES,
    }


@pytest.mark.parametrize(("clusters", "size"), SHAPES)
def test_unchanged_perplexity_is_seldom_called_changed(clusters: int, size: int):
    results = compare_many(**perplexities(clusters, size, 0, np.random.default_rng(clusters)))
    assert rates(results)["regression"] <= at_most(0.05)
    assert rates(results)["improvement"] <= at_most(0.05)
    assert covered(results, 0) >= 1 - at_most(0.05)


@pytest.mark.parametrize(("clusters", "size"), SHAPES)
def test_a_perplexity_worse_by_the_margin_is_seldom_called_non_inferior(clusters: int, size: int):
    results = compare_many(**perplexities(clusters, size, math.log(1.02), np.random.default_rng(clusters + 1)))
    assert rates(results)["non-inferior"] <= at_most(0.05)
    truth = [math.log(1.02)] * len(results)
    low, high = ([math.log1p(getattr(r, side)) for r in results] for side in ("relative_low", "relative_high"))
    assert np.mean(np.array(low) > truth) + np.mean(np.array(high) < truth) <= at_most(0.05)


def test_skewed_changes_are_survived():
    # Exponential changes of 40 documents; a sign-flip test alone errs in .09 of such cases, a t interval covers .93.
    results = compare_many(**perplexities(40, 3, 0, np.random.default_rng(0), skewed=True))
    assert max(rates(results)["regression"], rates(results)["improvement"]) <= at_most(0.06)
    assert covered(results, 0) >= 1 - at_most(0.05)


@pytest.mark.parametrize(("clusters", "size"), [(8, 60), (30, 20), (100, 5)])
def test_unchanged_answers_in_templates(clusters: int, size: int):
    results = compare_many(**template_answers(clusters, size, 0, np.random.default_rng(clusters)))
    assert rates(results)["regression"] <= at_most(0.05)
    assert rates(results)["improvement"] <= at_most(0.05)
    assert covered(results, 0) >= 1 - at_most(0.05)


@pytest.mark.parametrize(("clusters", "size"), [(8, 60), (30, 20), (100, 5)])
def test_answers_worse_by_the_margin_in_templates(clusters: int, size: int):
    results = compare_many(**template_answers(clusters, size, 0.03, np.random.default_rng(clusters + 1)))
    assert rates(results)["non-inferior"] <= at_most(0.05)
    assert covered(results, -0.03) >= 1 - at_most(0.05)


def test_clusters_must_be_declared():
    # Each template gains or loses as a whole: the same data as independent samples show what clusters are there for.
    rng = np.random.default_rng(0)
    index = np.arange(480) // 60
    touched, sign = (rng.random((2, 8, REPLICATES)) < 0.5)[:, index]
    hit = touched & (rng.random((480, REPLICATES)) < 0.2)
    dense, sparse = (hit & sign).astype(float), (hit & ~sign).astype(float)
    naive = rates(compare_many(dense, sparse, kind="binary"))
    clustered = rates(compare_many(dense, sparse, kind="binary", clusters=index, resamples=RESAMPLES))
    assert naive["regression"] > 0.3
    assert clustered["regression"] <= at_most(0.05)


@pytest.mark.parametrize("margin", [Margin(0.03), Margin(0.06, "relative")])
@pytest.mark.parametrize("n", [200, 1000])
def test_independent_answers(n: int, margin: Margin):
    rng = np.random.default_rng(n)
    dense = rng.random((n, REPLICATES)) < 0.5
    for loss in (0.0, 0.03):
        change = rng.random((n, REPLICATES)) < np.where(dense, 0.08 + loss, 0.08 - loss)
        results = compare_many(dense, dense ^ change, kind="binary", margin=margin)
        assert covered(results, -loss) >= 1 - at_most(0.05)
        if loss:
            assert rates(results)["non-inferior"] <= at_most(0.05)
        else:
            assert rates(results)["regression"] <= at_most(0.05)


@pytest.mark.parametrize("n", [150, 600])
def test_rare_collapses_of_a_score(n: int):
    # One sample in forty falls to 0 from .6: a loss of .015, all of it in a handful of samples.
    rng = np.random.default_rng(n)
    dense = rng.beta(3, 2, (n, REPLICATES))
    sparse = np.where(rng.random(dense.shape) < 0.025, 0, dense)
    results = compare_many(dense, sparse, margin=Margin(0.015), resamples=RESAMPLES)
    assert rates(results)["non-inferior"] <= at_most(0.05)
    assert covered(results, -0.015) >= 1 - at_most(0.05)


def test_power_is_as_foretold_for_answers():
    n, discordance = 1000, 0.08
    rng = np.random.default_rng(3)
    dense = rng.random((n, REPLICATES)) < 0.5
    effect = mde_binary(discordance, n)
    unchanged = compare_many(
        dense, dense ^ (rng.random(dense.shape) < discordance), kind="binary", margin=Margin(effect)
    )
    assert rates(unchanged)["non-inferior"] == pytest.approx(0.8, abs=0.05)
    lost = rng.random(dense.shape) < np.where(dense, discordance + effect, discordance - effect)
    assert rates(compare_many(dense, dense ^ lost, kind="binary"))["regression"] == pytest.approx(0.8, abs=0.05)
    assert np.median([r.mde for r in unchanged]) == pytest.approx(effect, rel=0.03)


@pytest.mark.parametrize(("clusters", "size"), [(15, 10), (150, 1)])
def test_power_is_as_foretold_for_scores(clusters: int, size: int):
    n, correlation = clusters * size, 0.3
    rng = np.random.default_rng(clusters)
    index = np.arange(n) // size
    common = rng.normal(0, math.sqrt(correlation), (clusters, REPLICATES))[index] if size > 1 else 0
    own = rng.normal(0, math.sqrt(1 - correlation) if size > 1 else 1, (n, REPLICATES))
    dense = rng.normal(0, 3, (n, REPLICATES))
    design = 1 + (size - 1) * correlation
    effect = mde_continuous(1, n, design_effect=design, clusters=clusters if size > 1 else 0)
    given = {"clusters": index if size > 1 else None, "margin": Margin(effect), "resamples": RESAMPLES}
    unchanged = compare_many(dense, dense + common + own, **given)
    assert rates(unchanged)["non-inferior"] == pytest.approx(0.8, abs=0.06)
    assert rates(compare_many(dense, dense + common + own - effect, **given))["regression"] == pytest.approx(
        0.8, abs=0.06
    )
    assert np.median([r.mde for r in unchanged]) == pytest.approx(effect, rel=0.05)
