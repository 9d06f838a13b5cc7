"""Headline figures of published results, a row for each method and budget and a column for each task, as Markdown.

    python benchmarks/task_table.py leaderboard/results/kick.tar.xz [--grid all] [--budget 30% 2:4] [--safe]

A figure has a mark where a verdict was reached: ▲ improved, ● non-inferior, ▼ regressed, ○ no signal; none where
nothing was shown. With `--safe` a row is a method, and its figures are the largest sparsity that kept the task, lower
ones included.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from sparsebench.reports.collect import collect
from sparsebench.reports.notation import by_number
from sparsebench.reports.safe import safe_sparsities

MARKS = {"improved": " ▲", "non-inferior": " ●", "regressed": " ▼", "no signal": " ○"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--grid", action="append", help="may be repeated; default: all grids")
    parser.add_argument("--budget", nargs="+", help="these budgets only")
    parser.add_argument("--safe", action="store_true")
    chosen = parser.parse_args()
    table = collect(*chosen.results)
    table = table[table["headline"] & (table["status"] == "ok") & (table["seed"] == 0)]
    if chosen.grid:
        table = table[table["grid"].isin(chosen.grid)]
    rows: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    if chosen.safe:
        for found in safe_sparsities(table):
            row = found.row
            text = "○" if found.obstacle else "none" if found.largest is None else f"{found.largest:.0%}"
            rows[row["family"], row["method"], row["config"]][row["task"]] = text
        names = ["family", "method", "config"]
    else:
        for row in table.to_dict("records"):
            budget = row["budget"] or ""
            if row["role"] in ("baseline", "noise") or not chosen.budget or budget in chosen.budget:
                large = row["value"] is not None and abs(row["value"]) >= 10
                text = f"{row['value']:.1f}" if large else f"{row['value']:.3f}"
                key = (row["family"], row["method"], row["config"], budget)
                rows[key][row["task"]] = text + MARKS.get(row["verdict"], "")
        names = ["family", "method", "config", "budget"]
    tasks = sorted({task for row in rows.values() for task in row}, key=by_number)
    print("| " + " | ".join([*names, *tasks]) + " |")
    print("| " + " | ".join(["---"] * len(names) + ["---:"] * len(tasks)) + " |")
    for key, row in sorted(rows.items(), key=lambda item: (item[0][1] != "dense", item[0])):
        print("| " + " | ".join([*key, *(row.get(task, "") for task in tasks)]) + " |")


if __name__ == "__main__":
    main()
