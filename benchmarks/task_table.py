"""Headline figures of published results, a row for each method and budget and a column for each task, as Markdown.

    python benchmarks/task_table.py leaderboard/results/kick.tar.xz [--grid all] [--budget 30% 2:4] [--safe | --asked]

A figure has a mark where a verdict was reached: ▲ improved, ● non-inferior, ▼ regressed, ○ no signal; none where
nothing was shown. Replicates of the dense row are left out. With `--safe` a row is a method, and its figures are the
largest sparsity that kept the task, lower ones included; with `--asked` rows stand by the budget that was asked for.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from sparsebench.reports.collect import collect
from sparsebench.reports.notation import by_number
from sparsebench.reports.safe import safe_sparsities

MARKS = {"improved": " ▲", "non-inferior": " ●", "regressed": " ▼", "no signal": " ○"}
COUNTED = "counted"


def shown(row: dict[str, Any]) -> str:
    """A row's figure with its mark."""
    large = row["value"] is not None and abs(row["value"]) >= 10
    text = f"{row['value']:.1f}" if large else f"{row['value']:.3f}".replace("0.", ".", 1)
    return text + MARKS.get(row["verdict"], "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--grid", action="append", help="may be repeated; default: all grids")
    parser.add_argument("--budget", nargs="+", help="these budgets only")
    parser.add_argument("--safe", action="store_true")
    parser.add_argument("--asked", action="store_true")
    chosen = parser.parse_args()
    table = collect(*chosen.results)
    table = table[table["headline"] & (table["status"] == "ok") & (table["seed"] == 0)]
    table = table[table["role"] != "noise"]
    if chosen.grid:
        # Grids share a dense row, which stands in the first of them.
        inside = table["grid"].isin(chosen.grid)
        table = table[inside | table["cell"].isin(set(table["baseline"][inside]))]
    rows: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    counted: dict[tuple[str, ...], list[float]] = defaultdict(list)
    if chosen.safe:
        for found in safe_sparsities(table):
            row = found.row
            text = "○" if found.obstacle else "none" if found.largest is None else f"{found.largest:.0%}"
            rows[row["family"], row["method"], row["config"]][row["task"]] = text
        names = ["family", "method", "config"]
    elif chosen.asked:
        for row in table[(table["request"] != "") | (table["role"] == "baseline")].to_dict("records"):
            share = f"{row['asked']:.2f}" if row["request"] else ""
            key = (row["request"], row["asked_of"], row["method"], row["config"], share)
            rows[key][row["task"]] = shown(row)
            if row["request"]:
                counted[key] += [row["realised"]] if pd.notna(row["realised"]) else []
        for key, found in counted.items():
            ends = sorted({f"{share:.2f}" for share in (min(found), max(found))}) if found else []
            rows[key][COUNTED] = " to ".join(ends)
        names = ["request", "of", "method", "config", "asked"]
    else:
        for row in table.to_dict("records"):
            budget = row["budget"] or ""
            if row["role"] == "baseline" or not chosen.budget or budget in chosen.budget:
                family = "" if row["role"] == "baseline" else row["family"]
                rows[family, row["method"], row["config"], budget][row["task"]] = shown(row)
        names = ["family", "method", "config", "budget"]
    told = [i for i, _ in enumerate(names) if len({key[i] for key in rows if "dense" not in key}) > 1]
    rows = {tuple(key[i] for i in told): row for key, row in rows.items()}
    names = [names[i] for i in told]
    tasks = sorted({task for row in rows.values() for task in row}, key=lambda name: (name != COUNTED, by_number(name)))
    print("| " + " | ".join([*names, *tasks]) + " |")
    print("| " + " | ".join(["---"] * len(names) + ["---:"] * len(tasks)) + " |")
    for key, row in sorted(rows.items(), key=lambda item: ("dense" not in item[0], item[0])):
        print("| " + " | ".join([*key, *(row.get(task, "") for task in tasks)]) + " |")


if __name__ == "__main__":
    main()
