"""How busy the scheduler keeps many workers: a simulation with the code of a run, and times that cells really took.

    python benchmarks/scheduler.py [RESULTS...] [--workers 1000] [--cells 100000] [--systems 40] [--load 5] [--seed 0]

Cells are those of RESULTS (default: the published ones), each as often as makes so many cells, on `--systems` models
and with many seeds. `executors.groups` groups and divides them and `schedule.Schedule` hands them out, as in a run;
only the work itself is replaced by its time. Assumed:

- A cell takes as long as the stored one did, times the size of its model, times a log-normal factor of sigma 0.3. The
  scheduler knows of that what it knows in a run: predicted FLOPs, and the times of cells that are done.
- Sizes of models are spread evenly on a log scale from 1 to 10 times that of the stored cells' model.
- A worker starts in 10 s, and loads a model in `--load` seconds times the model's size when it has another one loaded.
- What a method prepares at a budget (the stored seconds) is prepared again by each worker that takes it up, and when it
  comes back to it; the driver answers in the time that it really takes here, one worker after another.
- No worker fails, and workers are equally fast.

Utilisation is the time of evaluating all cells, and of preparing each method once at each budget for each model and
seed, over all time from the start until the last worker is done, times the workers. The table goes to
benchmarks/results/scheduler.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.executors import Group, groups, kind_of, predicted
from sparsebench.planned_cell import PlannedCell
from sparsebench.schedule import Schedule
from sparsebench.store import Store, StoredCell

ROOT = Path(__file__).parents[1]
START = 10.0
"""Seconds until a new worker asks for work."""
LARGEST = 10.0
"""Size of the largest model over that of the smallest."""
SIGMA = 0.3
"""Of the logarithm of the factor between two runs of a cell."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=sorted((ROOT / "leaderboard" / "results").iterdir()))
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--systems", type=int, default=40)
    parser.add_argument("--load", type=float, default=5.0, help="seconds, for the smallest model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scheduler.json")
    chosen = parser.parse_args()
    stored = [cell for place in chosen.results for cell in Store.open(place) if cell.record.outcome.status == "ok"]
    work = Work.of(stored, chosen.cells, chosen.systems, random.Random(chosen.seed))
    done = simulate(work, chosen.workers, chosen.load)
    commit, dirty = environment.commit()
    table = {
        "hardware": environment.hardware(),
        "commit": commit,
        "dirty": dirty,
        "sources": [place.name for place in chosen.results],
        "stored cells": len(stored),
        "workers": chosen.workers,
        "cells": len(work.cells),
        "systems": chosen.systems,
        "load seconds": chosen.load,
        "seed": chosen.seed,
        **done.table(work),
    }
    print(json.dumps(table, indent=1))
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        cells: Planned cells.
        seconds: Of evaluating each, by id.
        prepare: Of preparing what is attached in it, by id.
        sizes: Of each model, by reference.
    """

    cells: list[PlannedCell]
    seconds: dict[str, float]
    prepare: dict[str, float]
    sizes: dict[str, float]

    @classmethod
    def of(cls, stored: Sequence[StoredCell], count: int, systems: int, random_: random.Random) -> Work:
        """Stored cells on other models and with other seeds, `count` in all."""
        sizes = {f"model-{i}": LARGEST ** (i / max(1, systems - 1)) for i in range(systems)}
        work = cls([], {}, {}, sizes)
        for number in range(count):
            cell = stored[number % len(stored)]
            repeat = number // len(stored)
            ref = f"model-{repeat % systems}"
            system = cell.spec.system.model_copy(update={"ref": ref})
            spec = cell.spec.model_copy(update={"system": system, "seed": repeat // systems})
            outcome, identity = cell.record.outcome, f"{number:016x}"
            work.cells.append(
                PlannedCell(
                    id=identity,
                    spec=spec,
                    placement=cell.record.placement,
                    task=spec.task.id,
                    flops=sizes[ref] * (outcome.flops_dense or 0.0),
                )
            )
            work.seconds[identity] = outcome.seconds * sizes[ref] * random_.lognormvariate(0.0, SIGMA)
            work.prepare[identity] = outcome.prepare_seconds * sizes[ref]
        return work


@dataclass
class Simulated:
    """What came of a simulation; all times in seconds.

    Attributes:
        ends: When each worker was done.
        order: Which worker ran which group, in the order of beginning.
        loads: How often a model was loaded.
        loading: Time of that.
        preparing: Time of preparing methods.
        answering: Largest time that the driver took to hand out a group.
    """

    ends: list[float]
    order: list[tuple[int, Group]] = field(default_factory=list)
    loads: int = 0
    loading: float = 0.0
    preparing: float = 0.0
    answering: float = 0.0

    def table(self, work: Work) -> dict[str, Any]:
        """Figures, rounded."""
        span, evaluating = max(self.ends), sum(work.seconds.values())
        once: dict[tuple[str, str], float] = defaultdict(float)
        for _, group in self.order:
            key = (group.system, group.stack)
            once[key] = max(once[key], max(work.prepare[cell.id] for cell in group.cells))
        useful = evaluating + sum(once.values())
        return {
            "groups": len(self.order),
            "hours until the last worker is done": round(span / 3600, 3),
            "cell seconds, mean": round(evaluating / len(work.seconds), 2),
            "cell seconds, largest": round(max(work.seconds.values()), 1),
            "model loads": self.loads,
            "share of time loading": round(self.loading / (span * len(self.ends)), 4),
            "share of time preparing": round(self.preparing / (span * len(self.ends)), 4),
            "share of time waiting at the end": round(
                sum(span - end for end in self.ends) / (span * len(self.ends)), 4
            ),
            "driver's largest answer, ms": round(self.answering * 1000, 1),
            "utilisation": round(useful / (span * len(self.ends)), 4),
        }


def simulate(work: Work, workers: int, load: float) -> Simulated:
    """Let so many workers do the work.

    Args:
        work: The cells with their times.
        workers: How many.
        load: Seconds to load the smallest model.
    """
    schedule: Schedule[Group] = Schedule(groups(work.cells), workers)
    last: list[Group | None] = [None] * workers
    found = Simulated([START] * workers)
    free = [(START, index) for index in range(workers)]
    heapq.heapify(free)
    driver = 0.0
    while free:
        now, index = heapq.heappop(free)
        done = last[index]
        for cell in done.cells if done is not None else ():
            schedule.pace.learn(kind_of(cell), predicted(cell), work.seconds[cell.id])
            schedule.pace.learn_preparing(done, work.prepare[cell.id])
        began = time.perf_counter()
        group = schedule.take(last[index])
        took = time.perf_counter() - began
        if group is None:
            found.ends[index] = now if last[index] else START
            continue
        found.answering = max(found.answering, took)
        now = driver = max(now, driver) + took
        found.order.append((index, group))
        for kind, seconds in _steps(work, group, last[index], load):
            now += seconds
            found.loads += kind == "load"
            found.loading += seconds * (kind == "load")
            found.preparing += seconds * (kind == "prepare")
        last[index] = group
        heapq.heappush(free, (now, index))
    return found


def _steps(work: Work, group: Group, last: Group | None, load: float) -> Iterator[tuple[str, float]]:
    """What a worker does for a group, with seconds."""
    if last is None or last.system != group.system:
        yield "load", load * work.sizes[group.cells[0].spec.system.ref]
    if last is None or (last.system, last.stack) != (group.system, group.stack):
        yield "prepare", max(work.prepare[cell.id] for cell in group.cells)
    yield "evaluate", sum(work.seconds[cell.id] for cell in group.cells)


if __name__ == "__main__":
    main()
