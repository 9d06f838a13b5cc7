"""How often `check` fails on a real loss, and how often on none.

    python benchmarks/check_power.py [--replicates N] [--samples N] [--out FILE]

Each replicate is two results folders with one binary headline metric, written and compared as `sparsebench check` does.
The candidate's answers differ from the baseline's on a share of the samples, both ways; in the lines with a loss, two
points more of them are lost than gained. What theory says of the same test stands beside the lines with a margin that
is narrower than the loss: with a wider one, a loss that is shown to be within it does not fail. The table goes to
benchmarks/results/check_power.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "reports"))

LOSS = 0.02
CHANGED = (0.02, 0.04, 0.06, 0.1)
"""Shares of answers that change; at the first, with a loss, every change is one."""
NARROW = {"points": 0.01}
WIDE = {"relative": 0.05}
"""Margins: the second is wider than the loss, which is then acceptable, and to be found non-inferior."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1_000)
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "check_power.json")
    chosen = parser.parse_args()
    from sparsebench import environment

    rows = []
    lines = [(NARROW, loss, changed) for loss in (0.0, LOSS) for changed in CHANGED]
    for margin, loss, changed in [*lines, (WIDE, 0.0, 0.04), (WIDE, LOSS, 0.04)]:
        rows.append(rates(margin, loss, changed, chosen.samples, chosen.replicates))
        print(rows[-1], flush=True)
    table = {"commit": environment.commit()[0], "samples": chosen.samples, "alpha": 0.05, "rates": rows}
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def rates(margin: dict[str, float], loss: float, changed: float, samples: int, replicates: int) -> dict[str, Any]:
    """Shares of replicates with each verdict, and the share of checks that failed."""
    generator = np.random.default_rng([round(1000 * loss), round(1000 * changed)])
    verdicts: dict[str, int] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for replicate in range(replicates):
            verdict, passed = outcome(Path(temporary) / str(replicate), margin, loss, changed, samples, generator)
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
            failed += not passed
    return {
        "loss, points": 100 * loss,
        "answers changed": changed,
        "margin": margin,
        "failed": round(failed / replicates, 4),
        "predicted": round(predicted(loss, changed, samples), 4) if margin is NARROW else None,
        "replicates": replicates,
        "verdicts": {name: round(count / replicates, 4) for name, count in sorted(verdicts.items())},
    }


def outcome(
    folder: Path, margin: dict[str, float], loss: float, changed: float, samples: int, generator: np.random.Generator
) -> tuple[str, bool]:
    """One check of two folders: the verdict of the headline metric, and whether the check passed."""
    from synthetic_results import CHOICE, Writer, samples_of, write_suite

    from sparsebench.reports.check import check
    from sparsebench.store import Store

    frame = samples_of(CHOICE, 0.0, 0, samples)
    right = generator.random(samples) < 0.7
    # A change is a loss where the baseline was right: so many of both that the difference is `loss`.
    lost = (changed + loss) / 2 / 0.7
    gained = (changed - loss) / 2 / 0.3
    flipped = generator.random(samples) < np.where(right, lost, gained)
    for name, correct in (("a", right), ("b", right ^ flipped)):
        store = Store.create(folder / name)
        write_suite(store, margins={"*": {"*": margin}})
        Writer(store, samples=samples).cell(CHOICE, "pruning", frame=frame.assign(correct=correct.astype(float)))
    result = check(folder / "a", folder / "b")
    (row,) = (row for row in result.rows if row.tier == "quality" and row.headline)
    return row.verdict, result.passed


def predicted(loss: float, changed: float, samples: int) -> float:
    """Power of the exact McNemar test at one side's .05, summed over how many answers change and which way."""
    from scipy.stats import binom

    total = np.arange(samples + 1)
    weight = binom.pmf(total, samples, changed)
    share = (changed + loss) / 2 / changed
    # The least number of losses among `t` changes whose upper tail under equal odds is at most .05.
    least = binom.isf(0.05, total, 0.5) + 1
    return float((weight * binom.sf(least - 1, total, share)).sum())


if __name__ == "__main__":
    main()
