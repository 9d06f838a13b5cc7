"""What the site shows of claims, of one number a method, and of what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparsebench.reports import notation
from sparsebench.reports.atom import Entry
from sparsebench.reports.claim_formats import conditions, evidence
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.ledger import LedgerRow
from sparsebench.reports.safe import CostOfKeeping
from sparsebench.reports.sources import Source
from sparsebench.reports.views import Pages, family_order

STATUSES = ("HOLDS", "REFUTED", "UNDERPOWERED", "not measured")
STYLES = {"HOLDS": "non-inferior", "REFUTED": "regressed", "UNDERPOWERED": "inconclusive", "not measured": "no-signal"}
SYMBOLS = {"HOLDS": "●", "REFUTED": "▼", "UNDERPOWERED": "○", "not measured": "∅"}


def claim_view(row: LedgerRow, pages: Pages) -> dict[str, Any]:
    """One claim of a paper, for its page."""
    parts = row.found.parts if row.found is not None else ()
    sources = dict((cell, source) for source, cell in row.cells)
    return {
        "id": row.entry.claim,
        "entry": row.entry,
        "status": row.status,
        "style": STYLES[row.status],
        "symbol": SYMBOLS[row.status],
        "parts": [
            {
                "name": notation.printable(part.name, 100),
                "page": pages.cell(sources.get(part.cell, ""), part.cell),
                "evidence": evidence(part),
                "style": STYLES[part.answer],
                "symbol": SYMBOLS[part.answer],
                "answer": part.answer,
            }
            for part in parts
        ],
        "conclusion": conditions(row.found) if row.found is not None else row.problem,
        "scope": row.scope,
        "when": row.when,
        "command": f'sparsebench claim "{row.entry.rule}" RESULTS',
    }


def cost_views(costs: Sequence[CostOfKeeping], pages: Pages) -> list[dict[str, Any]]:
    """The cost of keeping quality on all tasks, cheapest first within each family."""
    several = len({cost.row["suite"] for cost in costs}) > 1
    lines = [
        {
            "family": cost.row["family"],
            "method": cost.row["method"],
            "config": cost.row["config"],
            "suite": cost.row["suite"] if several else "",
            "model": cost.row["model"],
            "tier": cost.row["tier"],
            "page": pages.method(cost.row["method"]),
            "budget": cost.budget,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "tasks": cost.tasks,
        }
        for cost in costs
    ]
    families = family_order(line["family"] for line in lines)
    return sorted(
        lines,
        key=lambda line: (
            families.index(line["family"]),
            not line["budget"],
            line["flops"] if line["flops"] is not None else 2.0,
            line["method"],
            line["config"],
        ),
    )


def feed_entries(sources: Sequence[Source], judged: Sequence[Judged], claims: Sequence[LedgerRow]) -> Iterator[Entry]:
    """An entry for each results folder and each decided claim."""
    newest = {}
    for source in sources:
        times = [item.cell.environment.started for item in judged if item.source is source]
        newest[source.name] = max(times, default="")
        cells = len(times) + len(source.broken)
        name = notation.printable(source.name, 80)
        yield Entry(f"Results: {name}", f"{cells} cells measured.", newest[source.name], "leaderboard/index.html")
    for row in claims:
        if row.found is not None:
            when = max((newest.get(source, "") for source, _ in row.cells), default="")
            title = f"{row.status}: {row.entry.rule}"
            yield Entry(title, f"{row.entry.says} {conditions(row.found)}", when, f"claims.html#{row.entry.claim}")
