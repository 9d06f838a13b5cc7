"""Time and memory of planning, resuming and collecting many cells.

    python benchmarks/scale.py [--cells N]

Plans a suite of N cells on a tiny model, writes N records as a run would have, and then times: the plan of the suite,
what a run does before its first cell where all of the cells are stored, and collecting the records. Each is done in a
process of its own, whose largest memory is noted. The table goes to benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale.json")
    chosen = parser.parse_args()
    if chosen.step:
        print(json.dumps(STEPS[chosen.step](chosen.folder, chosen.cells)))
        return
    from sparsebench import environment

    table: dict[str, Any] = {"hardware": environment.hardware(), "commit": environment.commit()[0], "steps": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        write_suite(folder, chosen.cells)
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--cells", str(chosen.cells)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            table["steps"][step] = json.loads(done.stdout.splitlines()[-1])
            print(step, table["steps"][step], flush=True)
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def write_suite(folder: Path, cells: int) -> None:
    """A suite of so many cells: pruning by magnitude at many levels, random pruning with many seeds, two tasks."""
    import models
    from small_tasks import write_tasks

    folder.mkdir(parents=True, exist_ok=True)
    write_tasks(folder)
    stories = Path(os.environ.get("SPARSEBENCH_DATA", "")) / "stories260k"
    model = stories if stories.is_dir() else folder / "model"
    if model != stories:
        models.tiny_model("llama").save_pretrained(model)
        models.tiny_tokenizer().save_pretrained(model)
    rows = cells // 2 - 1
    levels = [round(0.9 * (i + 1) / 100, 4) for i in range(100)]
    methods: list[Any] = [
        {"method": "random-weights", "budgets": {"sparsity": levels}, "seeds": list(range(rows // 100))}
    ]
    if rows % 100:
        left = [round(0.95 * (i + 1) / 100, 5) for i in range(rows % 100)]
        methods.append({"method": "magnitude", "budgets": {"sparsity": left}})
    grid = {"name": "grid", "system": "model", "methods": methods}
    grid["tasks"] = [str(folder / f"tiny-{name}.yaml") for name in ("choice", "perplexity")]
    data = {"suite": "scale", "version": 1, "systems": {"model": {"model": f"path:{model}", "dtype": "float32"}}}
    (folder / "suite.yaml").write_text(yaml.safe_dump({**data, "grids": [grid], "conclude": {"resamples": 100}}))


def _measured(work: Any) -> dict[str, Any]:
    from sparsebench.environment import peak_memory

    start, processor = time.perf_counter(), time.process_time()
    count = work()
    return {
        "cells": count,
        "seconds": round(time.perf_counter() - start, 2),
        "processor seconds": round(time.process_time() - processor, 2),
        "peak memory, MiB": (peak_memory() or 0) >> 20,
    }


def plan(folder: Path, cells: int) -> dict[str, Any]:
    """Planning the suite; loading libraries is not counted."""
    import transformers  # noqa: F401

    import sparsebench.systems.causal_lm  # noqa: F401
    from sparsebench.suite_run import planned

    return _measured(lambda: len(planned(str(folder / "suite.yaml"), device="cpu").cells))


def write(folder: Path, cells: int) -> dict[str, Any]:
    """Not measured for the table: one record and its samples, stored for every cell as a run stores them."""
    from sparsebench.runner import Session, run_cells
    from sparsebench.store import Store
    from sparsebench.suite_run import planned

    made = planned(str(folder / "suite.yaml"), device="cpu")
    store = Store.create(folder / "results")
    store.write_suite({"suite": made.suite.model_dump(mode="json"), "lock": made.lock})
    patterns = {}
    for task in {cell.task for cell in made.cells}:
        first = next(cell for cell in made.cells if cell.task == task and cell.spec.stack)
        run_cells([first], store, Session())
        stored = store.read(first.id)
        patterns[task] = (stored.record, stored.environment, (stored.folder / "samples.parquet").read_bytes())

    def work() -> int:
        for cell in made.cells:
            record, environment, samples = patterns[cell.task]
            place = store.cells_folder / cell.id
            place.mkdir(exist_ok=True)
            (place / "samples.parquet").write_bytes(samples)
            own = record.model_copy(update={"cell": cell.id, "placement": cell.placement})
            for name, content in (("spec", cell.spec), ("env", environment), ("record", own)):
                (place / f"{name}.json").write_text(
                    json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
                )
        return len(made.cells)

    return _measured(work)


def check_stored(folder: Path, cells: int) -> dict[str, Any]:
    """Reading and hashing every stored cell, as the first run does on a folder that came from elsewhere."""
    from sparsebench.store import Store

    store = Store(folder / "results")
    return _measured(lambda: len(store.finished_among(store.ids())))


def look_at_stored(folder: Path, cells: int) -> dict[str, Any]:
    """The same once more: what was found whole and has not changed is not read again."""
    return check_stored(folder, cells)


def resume_with_all_stored(folder: Path, cells: int) -> dict[str, Any]:
    """What a run does before its first cell: planning, and looking at what is stored."""
    import transformers  # noqa: F401

    from sparsebench.suite_run import run_suite

    return _measured(lambda: run_suite(str(folder / "suite.yaml"), folder / "results", device="cpu").skipped)


def read_records(folder: Path, cells: int) -> dict[str, Any]:
    """Reading and checking every record, without verdicts."""
    from sparsebench.reports.sources import open_sources

    return _measured(lambda: len(open_sources([folder / "results"])[0].cells))


def collect(folder: Path, cells: int) -> dict[str, Any]:
    """The tidy table, with every value computed again from its samples, every paired test and verdict."""
    from sparsebench.reports.collect import collect as collect_

    return _measured(lambda: int(collect_(folder / "results")["cell"].nunique()))


STEPS = {
    step.__name__: step
    for step in (plan, write, check_stored, look_at_stored, resume_with_all_stored, read_records, collect)
}

if __name__ == "__main__":
    main()
