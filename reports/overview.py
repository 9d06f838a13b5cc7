"""What the first page says of everything: counts, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsebench.reports import notation
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.sources import Source
from sparsebench.reports.task_pages import baseline_lines
from sparsebench.reports.verdicts import TESTED_ROLES
from sparsebench.reports.views import Row, family_order


def facts(headline: Sequence[Row], judged: Sequence[Judged], sources: Sequence[Source]) -> dict[str, Any]:
    """What the overview and the footer say of everything."""
    tested = [row for row in headline if row["role"] in TESTED_ROLES]
    decided = [row["verdict"] for row in tested if row["verdict"] in ("improved", "non-inferior", "regressed")]
    open_ = [row for row in tested if row["verdict"] == "inconclusive"]
    days = sorted({item.cell.environment.started[:10] for item in judged if item.cell.environment.started})
    baselines = {row["model"] for row in headline if row["role"] == "baseline"}
    broken = sum(len(source.broken) for source in sources)
    return {
        "suites": sorted({row["suite"] for row in headline if row["suite"]}),
        "measured": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "",
        "cells": len(judged) + broken,
        "failed": len({(row["source"], row["cell"]) for row in headline if row["status"] == "failed"}),
        "methods": len({row["method"] for row in headline if row["role"] not in ("baseline", "noise", "")}),
        "families": family_order(row["family"] for row in headline if row["family"]),
        "tasks": len({row["task"] for row in headline if row["task"]}),
        "silent": len({line["name"] for line in baseline_lines(headline) if line["signal"] == "none"}),
        "models": len(baselines or {row["model"] for row in headline if row["model"]}),
        "samples": sum(row["n"] or 0 for row in tested if row["delta"] is not None),
        "decided": len(decided) / (len(decided) + len(open_)) if decided or open_ else None,
    }


def source_line(source: Source, judged: Sequence[Judged]) -> dict[str, Any]:
    """One results folder: its suites, when and where they were run, and with which code."""
    mine = [item.cell for item in judged if item.source is source]
    days = sorted({cell.environment.started[:10] for cell in mine if cell.environment.started})
    suites = sorted({(cell.record.placement.suite, cell.record.placement.suite_version) for cell in mine})
    commits = {c.environment.commit + ("+changes" if c.environment.dirty else "") for c in mine if c.environment.commit}
    return {
        "name": notation.printable(source.name, 80),
        "suite": ", ".join(notation.printable(name, 60) for name, _ in suites),
        "version": ", ".join(str(version) for _, version in suites),
        "cells": len(mine) + len(source.broken),
        "measured": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "",
        "hardware": sorted({cell.environment.hardware for cell in mine}),
        "commits": sorted(commits),
    }
