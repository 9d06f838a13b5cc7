"""Hostile and damaged inputs of every kind in large numbers: the same as in tests/core/test_fuzz.py.

    python benchmarks/fuzz/campaign.py [--inputs 20000] [--kind NAME]... [--number N]

Each is given to the code that reads it, in this process; a result and one of our errors are good, anything else is a
finding: another exception, more than some seconds, a file outside its folder, a half-made folder. The counts go to
benchmarks/results/fuzz.json. `--kind NAME --number N` feeds that input alone and shows the whole traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import fuzzing  # noqa: E402

from sparsebench import environment  # noqa: E402

MEMORY = 8 * 2**30
"""Bytes of address space beyond what is in use: an input that wants more is a finding."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--number", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SPARSEBENCH_CACHE"] = os.environ["HF_HOME"] = str(Path(temporary) / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        kinds = [k for k in fuzzing.kinds(Path(temporary) / "seeds") if k.name in (chosen.kind or [k.name])]
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        folder = Path(temporary) / "arena" / "input"
        folder.mkdir(parents=True)
        if chosen.number is not None:
            kinds[0].feed(kinds[0].input(chosen.number), folder)
            return
        rows = [_row(kind, numbers, folder) for kind, numbers in _shares(kinds, chosen.inputs)]
    commit, dirty = environment.commit()
    table = {
        "packages": environment.packages(),
        "commit": commit,
        "dirty": dirty,
        "inputs": sum(row["inputs"] for row in rows),
        "findings": sum(len(row["findings"]) for row in rows),
        "kinds": rows,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")
    sys.exit(1 if table["findings"] else 0)


def _shares(kinds: list[fuzzing.Kind], inputs: int) -> list[tuple[fuzzing.Kind, list[int]]]:
    shares: dict[str, tuple[fuzzing.Kind, list[int]]] = {kind.name: (kind, []) for kind in kinds}
    for kind, number in fuzzing.plan(kinds, inputs):
        shares[kind.name][1].append(number)
    return list(shares.values())


def _row(kind: fuzzing.Kind, numbers: list[int], folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    row: dict[str, Any] = {"kind": kind.name, "inputs": len(numbers), "result": 0, "refused": 0, "findings": []}
    for number in numbers:
        said, found = fuzzing.attempt(kind, number, folder)
        row[said] += found is None
        if found is not None:
            row["findings"].append(asdict(found))
    row["seconds"] = round(time.monotonic() - start, 1)
    shown = {(f["what"][:90], f["where"]): f["number"] for f in row["findings"]}
    print(
        kind.name,
        {k: v for k, v in row.items() if k not in ("kind", "findings")},
        len(row["findings"]),
        shown,
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
