"""How often the intervals of clustered comparisons cover the truth, and how often the tests err.

Behind the choice of methods in `sparsebench.stats.inference`. Each line is one kind of change and one number of
clusters of 20 samples; for each method it prints the one-sided error rates (a loss claimed, a gain claimed; .05 is
meant) and the coverage of the two-sided interval (.95 is meant). The last lines are template losses of exactly the
margin, and how often they are called non-inferior. The table goes to benchmarks/results/stats_coverage.json.

    python benchmarks/stats_coverage.py [--replicates N] [--resamples N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from sparsebench.stats import Margin, compare_many
from sparsebench.stats.bounds import Bounds, Outermost, Student
from sparsebench.stats.clusters import ClusterSums, linearise
from sparsebench.stats.resample import bootstrap, sign_flip
from sparsebench.stats.scale import DIFFERENCE

SIZE = 20
CLUSTERS = (4, 6, 10, 20, 40, 150)
METHODS = ("percentile", "sign flip", "t", "bootstrap-t", "outermost")
KINDS = ("normal", "unequal sizes", "answers", "exponential", "log-normal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1_000)
    parser.add_argument("--resamples", type=int, default=1_999)
    default = Path(__file__).parent / "results" / "stats_coverage.json"
    parser.add_argument("--out", type=Path, default=default)
    chosen = parser.parse_args()
    lines: list[dict[str, object]] = []
    print(f"{'':22s} {'percentile':>17s} {'sign flip':>11s} {'t':>17s} {'bootstrap-t':>17s} {'outermost':>17s}")
    for kind in KINDS:
        for clusters in CLUSTERS:
            sums = simulated(kind, clusters, chosen.replicates, np.random.default_rng([KINDS.index(kind), clusters]))
            found = rates(sums, chosen.resamples)
            print(f"{kind:14s} C = {clusters:3d}", *found)
            numbers = {name: [float(x) for x in text.split()] for name, text in zip(METHODS, found, strict=True)}
            lines.append({"kind": kind, "clusters": clusters, **numbers})
    for clusters, size, spread in ((30, 33, 20), (30, 33, 50), (5, 100, 3)):
        rate = false_assurance(clusters, size, spread, chosen.replicates, chosen.resamples)
        print(f"{clusters} templates of {size}, rates beta({0.04 * spread:.2g}, {0.96 * spread:.3g}): {rate:.3f}")
        lines.append({"kind": "loss of the margin", "clusters": clusters, "size": size, "called non-inferior": rate})
    meaning = "of each method: rate of losses claimed, of gains claimed, coverage; of the sign flip the first two"
    table = {"replicates": chosen.replicates, "resamples": chosen.resamples, "figures": meaning, "lines": lines}
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def simulated(kind: str, clusters: int, replicates: int, generator: np.random.Generator) -> ClusterSums:
    """Samples of which the changes have mean zero and a part in common within each cluster."""
    each, common = (clusters, SIZE, replicates), (clusters, 1, replicates)
    weight = np.ones(each)
    if kind == "answers":
        flip = generator.random(each) < generator.beta(1, 4, common)
        better = generator.random(each) < 0.5
        dense = np.where(flip, ~better, generator.random(each) < 0.5).astype(np.float64)
        change = np.where(flip, np.where(better, 1.0, -1.0), 0.0)
    else:
        dense = generator.normal(0, 1, common) + generator.normal(0, 1, each)
        shared = {
            "exponential": lambda: 0.3 * (1 - generator.exponential(1, common)),
            "log-normal": lambda: 0.2 * (np.exp(0.5) - generator.lognormal(0, 1, common)),
        }.get(kind, lambda: generator.normal(0, 0.3, common))()
        change = shared + generator.normal(0, 0.1 if kind in ("exponential", "log-normal") else 0.5, each)
    if kind == "unequal sizes":
        weight = np.broadcast_to(generator.lognormal(0, 1, common), each)
    total = weight.sum(1)
    return ClusterSums((dense * weight).sum(1), total, ((dense + change) * weight).sum(1), total)


def rates(sums: ClusterSums, resamples: int) -> list[str]:
    """One-sided error rates and the coverage of each method."""
    linear = linearise(sums, DIFFERENCE)
    drawn = bootstrap(sums, [DIFFERENCE], resamples=resamples, seed=1)[0]
    flips = sign_flip(sums, resamples=resamples, seed=1)
    cells = range(len(linear.estimate))
    t: list[Bounds] = [Student(*(float(x[cell]) for x in (linear.estimate, linear.error, linear.df))) for cell in cells]
    studentised: list[Bounds] = [drawn.studentised(cell) for cell in cells]
    low, high = ((1 + (side).sum(0)) / (resamples + 1) for side in (drawn.estimates >= 0, drawn.estimates <= 0))
    outermost: list[Bounds] = [Outermost(pair) for pair in zip(t, studentised, strict=True)]
    columns = [_rates(low, high), f"{(flips.below <= 0.05).mean():5.3f} {(flips.above <= 0.05).mean():5.3f}"]
    for members in (t, studentised, outermost):
        columns.append(_rates(np.array([m.p_below(0) for m in members]), np.array([m.p_above(0) for m in members])))
    return columns


def _rates(below: np.ndarray, above: np.ndarray) -> str:
    covered = (np.minimum(below, above) > 0.025).mean()
    return f"{(below <= 0.05).mean():5.3f} {(above <= 0.05).mean():5.3f} {covered:5.3f}"


def false_assurance(clusters: int, size: int, spread: float, replicates: int, resamples: int) -> float:
    """How often a loss of two points, in some templates much more than in others, passes a margin of two points."""
    generator = np.random.default_rng([clusters, size, int(spread)])
    index = np.repeat(np.arange(clusters), size)
    dense = generator.random((len(index), replicates)) < 0.5
    rate = generator.beta(0.04 * spread, 0.96 * spread, (clusters, replicates))[index]
    sparse = dense & (generator.random(dense.shape) >= rate)
    results = compare_many(
        dense, sparse, kind="binary", clusters=index, margin=Margin(0.02), resamples=resamples, seed=1
    )
    return float(np.mean([result.p_noninferior <= 0.05 for result in results]))


if __name__ == "__main__":
    main()
