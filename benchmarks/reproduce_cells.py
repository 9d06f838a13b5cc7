"""Whether published cells come out again: a sample of them is computed by the command on its page, and compared.

    python benchmarks/reproduce_cells.py [RESULTS...] [--sample 6] [--seed 0] [--seconds 120] [--device D] [--out FILE]

Of each results folder (default: the published ones) so many cells are drawn of those that should take at most
`--seconds` here: by the time that they took on a processor, or by their FLOPs where a GPU computed them. They run on
the device that is here, in the dtype that they have; those whose commands differ by the cell alone run together. Their
baselines run with them, and are compared too.

On the same hardware, libraries and threads samples are equal, but for the rounding of what is published. Elsewhere sums
of floats are rounded otherwise, in bfloat16 by some percent of a logit: here and there an answer is another one, and a
method that chooses by scores chooses otherwise. So each metric is listed with its difference, the standard error of
that over paired samples, and how many samples differ by how much at most. A metric has come out again where the
difference is within a thousandth of the value or three standard errors; a cell, where all of its metrics have. The
table goes to benchmarks/results/reproduced.json; the exit status is 1 where a cell has not come out again. A cell that
needs a library which is not installed here is not tried.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench import environment
from sparsebench.metrics import Metric
from sparsebench.reports.cell_pages import command
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.sources import Samples, Source, open_sources, read_samples
from sparsebench.store import Store, StoredCell
from sparsebench.suite_run import chosen_device
from sparsebench.systems.loading import resolve_dtype

ROOT = Path(__file__).parents[1]
RATE = 1e11
"""FLOPs a second of two cores, for what a cell of a GPU will take here."""
SLOWER = 20
"""Times that a cell of a GPU takes here at least: decoding waits for memory, not for FLOPs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=sorted((ROOT / "leaderboard" / "results").iterdir()))
    parser.add_argument("--sample", type=int, default=6, help="cells of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0, help="that a cell may take, without its baseline")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reproduced.json")
    chosen = parser.parse_args()
    device = chosen_device(chosen.device)
    commit, dirty = environment.commit()
    facts = {"hardware": environment.hardware(device), "packages": environment.packages()}
    facts |= {"commit": commit, "dirty": dirty, "seed": chosen.seed}
    chosen.out.parent.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    tried: list[bool] = []
    for source in open_sources(chosen.results):
        for row in reproduced(source, drawn(source, chosen.sample, chosen.seconds, chosen.seed, device), device):
            print("\n".join(lines(row)), flush=True)
            rows.append(row)
            tried += [] if row["reproduced"] is None else [row["reproduced"]]
            table = {**facts, "reproduced": sum(tried), "of": len(tried), "cells": rows}
            chosen.out.write_text(json.dumps(table, indent=1) + "\n")  # each time, since a long run may be cut short
    print(f"{sum(tried)} of {len(tried)} cells came out again")
    sys.exit(0 if tried and all(tried) else 1)


def drawn(source: Source, count: int, seconds: float, seed: int, device: str) -> list[StoredCell]:
    """Cells of a folder that can be computed here in that time."""
    able = [cell for _, cell in sorted(source.cells.items()) if _able(cell, device) and _expected(cell) <= seconds]
    return random.Random(seed).sample(able, min(count, len(able)))


def _able(cell: StoredCell, device: str) -> bool:
    dtypes = ("", "float32", str(resolve_dtype("auto", device)).removeprefix("torch."))
    outcome = cell.record.outcome
    return outcome.status == "ok" and not outcome.timed and cell.spec.system.dtype in dtypes


def _expected(cell: StoredCell) -> float:
    """Seconds that it will take here, about; what was computed where the time is measured took that."""
    outcome, took = cell.record.outcome, cell.record.outcome.seconds + cell.record.outcome.prepare_seconds
    if cell.environment.device == "cpu":
        return took
    reading = 2.0 * cell.record.system.get("parameters", 0) * outcome.prepare_tokens
    return max(SLOWER * took, ((outcome.flops_dense or 0.0) + reading) / RATE)


def reproduced(source: Source, cells: Sequence[StoredCell], device: str) -> Iterator[dict[str, Any]]:
    """What comes of some cells of a folder, and of their baselines."""
    runs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for cell in cells:
        _, run, suite, _, identity, *rest = shlex.split(command(Judged(source, cell)))
        if "--device" in rest:
            rest[rest.index("--device") + 1] = device
        runs[(run, suite, *rest)].append(identity)
    for words, identities in runs.items():
        yield from _together(source, words, identities)


def _together(source: Source, words: Sequence[str], identities: list[str]) -> Iterator[dict[str, Any]]:
    """What comes of cells that have one command."""
    with tempfile.TemporaryDirectory() as out:
        asked = [word for identity in identities for word in ("--cell", identity)]
        call = [sys.executable, "-m", "sparsebench", *words, *asked, "--out", out, "--no-site"]
        said = subprocess.run(call, capture_output=True, text=True).stderr
        found = {cell.id: cell for cell in Store(out)} if (Path(out) / "cells").is_dir() else {}
        if not found and len(identities) > 1:  # one that cannot be asked for stops all
            for identity in identities:
                yield from _together(source, words, [identity])
            return
        for identity in dict.fromkeys([*identities, *sorted(found.keys() & source.cells.keys())]):
            row = _row(source.cells[identity], found.get(identity), said)
            yield {"source": source.name, **row, "command": shlex.join(["sparsebench", *words, "--cell", identity])}


def _row(published: StoredCell, again: StoredCell | None, said: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cell": published.id,
        "label": published.record.placement.label,
        "task": published.spec.task.id,
        "published on": published.environment.hardware,
    }
    if again is None or again.record.outcome.status != "ok":
        why = said.strip().splitlines()[-2:] if again is None else [again.record.outcome.error]
        lacking = any(str(line).startswith("MissingError") for line in why)  # a library that is not installed here
        return {**row, "reproduced": None if lacking else False, "why": why}
    return {**row, **compared(published, again)}


def compared(published: StoredCell, again: StoredCell) -> dict[str, Any]:
    """What differs between two records of a cell."""
    old, new = read_samples(published), read_samples(again)
    if not old.ids.equals(new.ids):
        return {"reproduced": False, "why": ["the samples are others, or in another order"]}
    there, here = published.environment, again.environment
    changed = {
        what: [getattr(there, what), getattr(here, what)]
        for what in ("hardware", "threads", "batch_tokens", "python")
        if getattr(there, what) != getattr(here, what)
    }
    packages = {
        name: [before, here.packages.get(name)]
        for name, before in there.packages.items()
        if here.packages.get(name, before) != before
    }
    bits = published.record.rounded_bits
    metrics = {
        value.metric.name: difference(value.metric, old, new, 0.0 if bits is None else 2.0**-bits)
        for value in published.record.outcome.metrics
    }
    outcomes = published.record.outcome, again.record.outcome
    return {
        "metrics": metrics,
        "sparsity": [outcome.sparsity for outcome in outcomes],
        "flops": [outcome.flops for outcome in outcomes],
        "texts equal": _texts(old, new),
        "other": {**changed, **packages},
        "samples equal": all(metric["samples that differ"] == 0 for metric in metrics.values()),
        "reproduced": all(metric["reproduced"] for metric in metrics.values()),
    }


def difference(metric: Metric, old: Samples, new: Samples, rounding: float) -> dict[str, Any]:
    """How far a metric is from the published one; its value before `exp` is taken, where it takes it.

    Args:
        metric: The metric.
        old: The published samples.
        new: Those of the run.
        rounding: What the published numbers were rounded by, as a share of themselves.
    """
    before, after = old.numbers(metric.column), new.numbers(metric.column)
    there = ~np.isnan(before)
    weight = old.weight(metric)
    total = float(there.sum() if weight is None else weight[there].sum())
    apart = (after - before)[there]
    beyond = ~np.isclose(after, before, rtol=rounding, atol=1e-12, equal_nan=True)
    value, change = float(before[there].sum()) / total, float(apart.sum()) / total
    error = float(apart.std(ddof=1)) * len(apart) ** 0.5 / total if len(apart) > 1 else 0.0
    return {
        "published": value,
        "difference": change,
        "standard error": error,
        "samples": len(before),
        "samples that differ": int(beyond.sum()),
        "largest difference of a sample": float(np.abs(apart).max(initial=0.0)),
        "reproduced": bool(abs(change) <= max(1e-3 * abs(value), 3 * error) and (there == ~np.isnan(after)).all()),
    }


def _texts(old: Samples, new: Samples) -> str | None:
    """How many answers are the same texts; None where they were left out."""
    if not {"response"} <= old.columns & new.columns:
        return None
    same = sum(a == b for a, b in zip(old.texts("response"), new.texts("response"), strict=True))
    return f"{same} of {len(old.ids)}"


def lines(row: dict[str, Any]) -> Iterator[str]:
    """A cell as text."""
    why = f": {' '.join(row['why'])}" if "why" in row else ""
    said = {True: "again", False: "NOT again", None: "not tried"}[row["reproduced"]]
    yield f"{row['source']} {row['cell']} {row['label']} on {row['task']}: {said}{why}"
    for name, own in row.get("metrics", {}).items():
        change = f"{own['difference']:+.2g} ± {own['standard error']:.2g}"
        apart = f"{own['samples that differ']} of {own['samples']} samples differ"
        largest = f"by {own['largest difference of a sample']:.2g} at most"
        yield f"    {name}: {own['published']:.5g} {change}, {apart}, {largest}"


if __name__ == "__main__":
    main()
