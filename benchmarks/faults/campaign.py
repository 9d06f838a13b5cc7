"""Every fault at many random moments, and what was lost: the same faults as in tests/core/test_faults.py.

    python benchmarks/faults/campaign.py [--moments N] [--seed S] [--fault NAME]... [--model REF]

The table goes to benchmarks/results/faults.json; with `--fault`, rows of other faults that it holds stay. A fault that
this machine does not permit (mounting a small disk, say) is left out, and said to be. The model is stories260k of
SPARSEBENCH_DATA, or else a tiny one with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import faults  # noqa: E402
import models  # noqa: E402
from source_faults import source_stops  # noqa: E402

from sparsebench import environment  # noqa: E402

FAULTS = {**faults.FAULTS, "source_stops": source_stops}
faults.PATIENCE = 1800.0  # a machine that does other work too may stop a driver for long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS))
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "faults.json")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        suite = faults.write_suite(folder / "suite", chosen.model or _model(folder / "model"))
        arena = faults.Arena.build(suite, folder / "runs")
        print(f"{len(arena.expected)} cells; {chosen.moments} moments of each fault")
        for name in chosen.fault or FAULTS:
            rows.append(_row(arena, name, chosen.moments, random.Random(f"{chosen.seed} {name}")))
            print(json.dumps(rows[-1]), flush=True)
    bad = [row["fault"] for row in rows if row["good"] not in (row["tried"], None)]
    if chosen.fault and chosen.out.exists():
        earlier = json.loads(chosen.out.read_text())["faults"]
        rows = [row for row in earlier if row["fault"] not in chosen.fault] + rows
    commit, dirty = environment.commit()
    table = {
        "hardware": environment.hardware(),
        "packages": environment.packages(),
        "commit": commit,
        "dirty": dirty,
        "seed": chosen.seed,
        "cells": len(arena.expected),
        "faults": rows,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")
    sys.exit(1 if bad else 0)


def _model(folder: Path) -> str:
    stories = Path(os.environ.get("SPARSEBENCH_DATA", "")) / "stories260k"
    if stories.is_dir():
        return f"path:{stories}"
    models.tiny_model("llama").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return f"path:{folder}"


def _row(arena: faults.Arena, name: str, moments: int, random_: random.Random) -> dict[str, Any]:
    found: list[faults.Aftermath] = []
    start = time.monotonic()
    for _ in range(moments):
        moment = faults.Moment.draw(random_, len(arena.expected))
        try:
            found.append(FAULTS[name](arena, moment))
        except (PermissionError, FileNotFoundError) as error:
            return {"fault": name, "tried": 0, "good": None, "why": str(error)}
    resumed = [item.resumed_after for item in found if item.resumed_after]
    return {
        "fault": name,
        "title": found[0].fault,
        "tried": len(found),
        "struck": sum(item.struck for item in found),
        "good": sum(item.good for item in found),
        "lost": sum(item.lost for item in found),
        "doubled": sum(item.doubled for item in found),
        "damaged": sum(item.damaged for item in found),
        "unequal": sum(item.unequal for item in found),
        "replanned": sum(item.replanned for item in found),
        "left behind": sum(item.left_behind for item in found),
        "seconds to resume, median": round(statistics.median(resumed), 2) if resumed else None,
        "seconds to resume, largest": round(max(resumed), 2) if resumed else None,
        "seconds": round(time.monotonic() - start),
        "notes": [note for item in found for note in item.notes][:5],
    }


if __name__ == "__main__":
    main()
