"""The share of a cell's time that is not the model's: building requests' rows, packing, scoring, statistics, storing.

    python benchmarks/engine/overhead.py [--items 100]

Runs a suite of a dense system and a pruned one on three tasks as `sparsebench run` does, and adds up the time inside
forward passes. What is counted is what a cell takes until it is stored. Planning and loading happen once for a suite;
what happens between cells (attaching a method, counting its zeros, once for all tasks of a method) is stored beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from protocol import RESULTS, SMOLLM2, store, verdict

from sparsebench.runner import Session, run_cells
from sparsebench.store import Store
from sparsebench.suite_run import planned

TARGET = 0.05


class ModelTime:
    """Seconds inside forward passes of a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._start = 0.0
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._start


def suite(folder: Path, chosen: argparse.Namespace) -> Path:
    """A suite file: dense and magnitude at one level, three tasks."""
    import yaml

    tasks = [{"task": name, "limit": chosen.items} for name in ("arc-easy", "hellaswag", "qa-wikidata")]
    grid = {
        "name": "grid",
        "system": "model",
        "tasks": tasks,
        "methods": ["dense", {"method": "magnitude", "budgets": {"sparsity": [0.3]}}],
    }
    systems = {"model": {"model": chosen.model, "dtype": chosen.dtype}}
    place = folder / "suite.yaml"
    place.write_text(yaml.safe_dump({"suite": "overhead", "version": 1, "systems": systems, "grids": [grid]}))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, metavar="REF")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine-overhead.json", metavar="FILE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        made = planned(str(suite(Path(temporary), chosen)), device="cpu")
        store_ = Store.create(Path(temporary) / "results")
        store_.write_suite({"suite": made.suite.model_dump(mode="json"), "lock": made.lock})
        session = Session()
        system: Any = session.load(made.cells[0])
        print(system.describe()["engine"], flush=True)  # found out by trying, once for a model
        clock = ModelTime(system.model)
        rows: list[dict[str, Any]] = []
        start = time.perf_counter()

        def note(done: Any) -> None:
            model = clock.seconds - sum(row["model"] for row in rows)
            label = f"{done.label} {done.task}"
            rows.append({"cell": label, "status": done.status, "seconds": done.seconds, "model": model})

        run_cells(made.cells, store_, session, note)
        taken = time.perf_counter() - start
    whole, model = (sum(row[name] for row in rows) for name in ("seconds", "model"))
    found = {"cells": rows, "seconds": whole, "model": model, "between cells": taken - whole}
    store(chosen, found | verdict(1 - model / whole, TARGET, at_most=True))


if __name__ == "__main__":
    main()
