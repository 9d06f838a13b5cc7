"""A grid of 24 configurations (6 methods x 4 budgets) on 3 tasks, against a process of lm-eval for each of them.

    python benchmarks/engine/grid.py [--items 60]

Ours is `sparsebench run` of the whole suite in one process: it loads the model, plans, prepares methods, evaluates the
dense model and all configurations, tests and stores. The peer is a process that loads the model and scores the same
requests with lm-eval's Hugging Face backend at its best batch size. What the peer would need to make a model sparse,
to store it and to build its tasks is left out, which is to its advantage. Its time is 24 times the median of three
processes, of which one runs before ours and two after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import Compared
from protocol import RESULTS, SMOLLM2, Request, Setting, begin, best_size, peer, side, store, verdict

TARGET = 8
TASKS = ("arc-easy", "hellaswag", "qa-wikidata")
LEVELS = [0.1, 0.2, 0.3, 0.5]
METHODS = ("random-weights", "magnitude", "wanda", "wanda-variant", "teal", "wina")
PROCESSES = 3


def suite(folder: Path, chosen: argparse.Namespace) -> Path:
    """The suite file of the grid."""
    import yaml

    grid = {
        "name": "grid",
        "system": "model",
        "calibration": "prose",
        "tasks": [{"task": name, "limit": chosen.items} for name in TASKS],
        "methods": ["dense", *({"method": name, "budgets": {"sparsity": LEVELS}} for name in METHODS)],
    }
    written = {
        "suite": "grid",
        "version": 1,
        "systems": {"model": {"model": chosen.model, "dtype": chosen.dtype}},
        "calibration": {"prose": {"data": "prose", "sequences": 8, "length": 512}},
        "grids": [grid],
    }
    place = folder / "suite.yaml"
    place.write_text(yaml.safe_dump(written))
    return place


def answer(file: Path) -> None:
    """The peer's process: load the model, score all requests."""
    given = json.loads(file.read_text(encoding="utf-8"))
    begin(Setting(**given["setting"]))
    for task in given["tasks"]:
        peer([Request(r["kind"], tuple(r["arguments"]), r["sample"]) for r in task["requests"]], task["size"])


def run(command: list[str], threads: int) -> float:
    """Seconds of a process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, metavar="REF")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=60, help="samples of each task")
    parser.add_argument("--sizes", nargs="+", default=["8", "16", "32"])
    parser.add_argument("--out", type=Path, default=RESULTS / "engine-grid.json", metavar="FILE")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.answer:
        answer(chosen.answer)
        return
    setting = Setting(chosen.model, chosen.dtype, chosen.threads)
    tasks = [Compared.load(name, chosen.model, chosen.items) for name in TASKS]
    with side(setting) as backend:
        sizes = [best_size(backend, task.part(range(12)).requests, chosen.sizes)[0] for task in tasks]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = {
            "setting": asdict(setting),
            "tasks": [
                {"size": size, "requests": [asdict(r) for r in task.requests]}
                for task, size in zip(tasks, sizes, strict=True)
            ],
        }
        (folder / "requests.json").write_text(json.dumps(given), encoding="utf-8")
        theirs = [sys.executable, __file__, "--answer", str(folder / "requests.json")]
        mine = [sys.executable, "-m", "sparsebench", "run", str(suite(folder, chosen)), "--out", str(folder / "out")]
        seconds = [run(theirs, chosen.threads)]
        ours = run(mine, chosen.threads)
        seconds += [run(theirs, chosen.threads) for _ in range(PROCESSES - 1)]
        cells: list[Any] = list((folder / "out" / "cells").glob("*/record.json"))
        statuses = [json.loads(path.read_text(encoding="utf-8"))["outcome"]["status"] for path in cells]
    configurations = len(METHODS) * len(LEVELS)
    found = {
        "configurations": configurations,
        "tasks": TASKS,
        "samples of each": chosen.items,
        "cells stored, the dense ones among them": {name: statuses.count(name) for name in sorted(set(statuses))},
        "batch sizes of the peer": dict(zip(TASKS, sizes, strict=True)),
        "seconds of our process": ours,
        "seconds of the peer's processes": seconds,
        "seconds of 24 of them, extrapolated": configurations * statistics.median(seconds),
        **verdict(configurations * statistics.median(seconds) / ours, TARGET),
    }
    store(chosen, found)


if __name__ == "__main__":
    main()
