"""Quality, latency and index size of published retrieval rows, side by side, as a Markdown table.

    python benchmarks/retrieval_table.py [RESULTS]

Each collection has nDCG@10, the milliseconds of a search by one thread without the encoder, and the MiB of the index in
memory. Rows with another seed than 0 are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sparsebench.reports.sources import open_sources

RESULTS = Path(__file__).parents[1] / "leaderboard" / "results" / "retrieval.tar.xz"


def main() -> None:
    (source,) = open_sources([Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS])
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for cell in source.cells.values():
        place, outcome = cell.record.placement, cell.record.outcome
        if outcome.status != "ok" or cell.spec.seed:
            continue
        values = {m.metric.name: m.value for m in outcome.metrics}
        search, size = outcome.speed.get("search_query_ms_1_thread"), outcome.counters.get("index bytes in memory")
        figures = [f"{values['nDCG@10']:.3f}", f"{search:.2f}" if search else "", f"{size / 2**20:.1f}" if size else ""]
        rows.setdefault((place.grid, place.label, place.config), {})[cell.spec.task.id] = " · ".join(figures)
    tasks = sorted({task for row in rows.values() for task in row})
    print("| grid | method | config |", " | ".join(tasks), "|")
    print("| --- | --- | --- |" + " ---: |" * len(tasks))
    for (grid, label, config), row in sorted(rows.items()):
        print(f"| {grid} | {label} | {config} |", " | ".join(row.get(task, "") for task in tasks), "|")


if __name__ == "__main__":
    main()
