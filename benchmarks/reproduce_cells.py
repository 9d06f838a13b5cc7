"""Whether published cells come out again: a sample of them is computed by the command on its page, and compared.

    python benchmarks/reproduce_cells.py [RESULTS...] [--sample 6] [--seed 0] [--seconds 120] [--out FILE]

Of each results folder (default: the published ones) cells are drawn that were computed on a processor, in float32 or
the dtype that `auto` means here, and in at most `--seconds`. Each is run into an empty folder; then its id, its values
and its samples are compared with those that are published. The table goes to benchmarks/results/reproduced.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench import environment
from sparsebench.reports.cell_pages import command
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.sources import open_sources, read_samples
from sparsebench.store import Store, StoredCell
from sparsebench.systems.loading import resolve_dtype

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=sorted((ROOT / "leaderboard" / "results").iterdir()))
    parser.add_argument("--sample", type=int, default=6, help="cells of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reproduced.json")
    chosen = parser.parse_args()
    random_ = random.Random(chosen.seed)
    rows = []
    for source in open_sources(chosen.results):
        able = [cell for cell in source.cells.values() if _able(cell, chosen.seconds)]
        for cell in random_.sample(able, min(chosen.sample, len(able))):
            rows.append(_row(Judged(source, cell)))
            print(json.dumps(rows[-1]), flush=True)
    commit, dirty = environment.commit()
    table = {
        "hardware": environment.hardware(),
        "packages": environment.packages(),
        "commit": commit,
        "dirty": dirty,
        "cells": rows,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")
    sys.exit(0 if rows and all(row["reproduced"] for row in rows) else 1)


def _able(cell: StoredCell, seconds: float) -> bool:
    outcome = cell.record.outcome
    dtypes = ("float32", str(resolve_dtype("auto", "cpu")).removeprefix("torch."))
    here = cell.environment.device == "cpu" and cell.spec.system.dtype in dtypes
    return (
        here and not outcome.timed and outcome.status == "ok" and outcome.seconds + outcome.prepare_seconds <= seconds
    )


def _row(item: Judged) -> dict[str, Any]:
    words = shlex.split(command(item))
    row: dict[str, Any] = {
        "source": item.source.name,
        "cell": item.cell.id,
        "label": item.cell.record.placement.label,
        "task": item.cell.spec.task.id,
        "command": shlex.join(words),
        "published on": item.cell.environment.hardware,
    }
    with tempfile.TemporaryDirectory() as temporary:
        run = [sys.executable, "-m", "sparsebench", *words[1:], "--out", temporary, "--no-site"]
        done = subprocess.run(run, capture_output=True, text=True)
        if done.returncode:
            return {**row, "reproduced": False, "why": done.stderr.strip().splitlines()[-1:]}
        return {**row, **compared(item.cell, Store(temporary).read(item.cell.id))}


def compared(published: StoredCell, again: StoredCell) -> dict[str, Any]:
    """What differs between two records of a cell.

    On the same hardware, libraries and batch plan samples are equal. Elsewhere sums of floats round differently: values
    may differ by a thousandth of themselves, or by one answer in a hundred.
    """
    old, new = read_samples(published), read_samples(again)
    values = {
        then.metric.name: [then.value, now.value]
        for then, now in zip(published.record.outcome.metrics, again.record.outcome.metrics, strict=True)
    }
    same = [np.array_equal(old.numbers(m.metric.column), new.numbers(m.metric.column), equal_nan=True)
            for m in published.record.outcome.metrics]  # fmt: skip
    close = all(
        (a is None and b is None) or (a is not None and b is not None and np.isclose(a, b, rtol=1e-3, atol=0.01))
        for a, b in values.values()
    )
    return {
        "values": values,
        "samples in the same order": old.ids.equals(new.ids),
        "samples equal": all(same),
        "samples byte-equal": published.record.samples_sha256 == again.record.samples_sha256,
        "reproduced": bool(close and old.ids.equals(new.ids)),
    }


if __name__ == "__main__":
    main()
