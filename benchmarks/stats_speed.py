"""How long the paired statistics of a whole leaderboard take.

Prints the seconds of `compare_many` (bootstrap, permutation, intervals, power and verdicts) for 1,000 cells of 1,000
samples with 10,000 resamples, independent and in clusters. The table goes to benchmarks/results/stats_speed.json.

    python benchmarks/stats_speed.py [--cells N] [--samples N] [--resamples N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from sparsebench.stats import Margin, compare_many

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "stats_speed.json")
    chosen = parser.parse_args()
    generator = np.random.default_rng(0)
    dense = generator.normal(3, 0.5, chosen.samples)
    sparse = dense[:, None] + generator.normal(0.01, 0.1, (chosen.samples, chosen.cells))
    weight = generator.integers(200, 1_000, chosen.samples).astype(np.float64)
    right = (generator.random(chosen.samples) < 0.5).astype(np.float64)
    flipped = generator.random((chosen.samples, chosen.cells)) < 0.05
    answers = np.where(flipped, 1 - right[:, None], right[:, None])
    templates = np.arange(chosen.samples) % 50
    print(
        f"{chosen.cells:,} cells x {chosen.samples:,} samples x {chosen.resamples:,} resamples, {os.cpu_count()} cores"
    )
    table: dict[str, float] = {}
    for name, seconds in (
        ("perplexity, independent windows", _timed(dense, sparse, weight, None, "exp", chosen.resamples)),
        ("perplexity, 50 clusters", _timed(dense, sparse, weight, templates, "exp", chosen.resamples)),
        ("accuracy, 50 clusters", _timed(right, answers, None, templates, "identity", chosen.resamples)),
        ("accuracy, independent questions", _timed(right, answers, None, None, "identity", chosen.resamples)),
    ):
        print(f"{name:34s} {seconds:6.1f} s")
        table[name] = round(seconds, 2)
    write(chosen.out, {"cells": chosen.cells, "samples": chosen.samples, "resamples": chosen.resamples}, table)


def write(out: Path, shape: dict[str, int], table: dict[str, float]) -> None:
    """Keep the figures, with where they were taken."""
    from sparsebench import environment

    found = {"hardware": environment.hardware(), "commit": environment.commit()[0], **shape, "seconds": table}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def _timed(
    dense: np.ndarray,
    sparse: np.ndarray,
    weight: np.ndarray | None,
    clusters: np.ndarray | None,
    transform: str,
    resamples: int,
) -> float:
    exponential = transform == "exp"
    scale = np.ones(len(dense)) if weight is None else weight
    start = time.perf_counter()
    compare_many(
        dense * scale,
        sparse * scale[:, None],
        weight_dense=weight,
        clusters=clusters,
        kind="continuous" if exponential else "binary",
        transform="exp" if exponential else "identity",
        higher_is_better=not exponential,
        margin=Margin(0.01, "relative"),
        resamples=resamples,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
