"""What a figure of quality against cost has to show: the points of one model, task and headline metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparsebench.reports.notation import known, printable, slug

Row = dict[str, Any]


@dataclass(frozen=True)
class Tradeoff:
    """What one figure shows.

    Attributes:
        model: The model.
        task: The task.
        metric: The headline metric.
        rows: Rows of the tidy table, without baseline and noise.
        dense: The baseline's value; None where there is none.
        margin: The declared margin in the metric's units; None without one.
        higher_is_better: Which direction is a gain.
        name: A file name without ending.
    """

    model: str
    task: str
    metric: str
    rows: Sequence[Row]
    dense: float | None
    margin: float | None
    higher_is_better: bool
    name: str

    @property
    def kinds(self) -> list[str]:
        """What the sparsities are shares of; a row of panels each."""
        return sorted({kind_of(row) for row in self.rows})


def tradeoffs(table: pd.DataFrame) -> list[Tradeoff]:
    """All figures that a tidy table has points for, by task, metric and model.

    Tasks without signal and methods that were not exercised have none.
    """
    points = table[table["headline"] & ~table["role"].isin(["baseline", "noise"]) & (table["status"] == "ok")]
    points = points[points["value"].map(math.isfinite) & points["sparsity"].notna()]
    points = points[~points["verdict"].isin(["no signal", "not exercised"])]
    found = []
    for (task, metric, model), group in points.groupby(["task", "metric", "model"], sort=True):
        rows = group.to_dict("records")
        dense = [float(row["dense"]) for row in rows if known(row["dense"]) and math.isfinite(row["dense"])]
        margins = [float(row["margin"]) for row in rows if known(row["margin"])]
        found.append(
            Tradeoff(
                model=str(model),
                task=str(task),
                metric=str(metric),
                rows=rows,  # type: ignore[arg-type]
                dense=max(set(dense), key=dense.count) if dense else None,
                margin=max(set(margins), key=margins.count) if margins else None,
                higher_is_better=bool(rows[0]["higher_is_better"]),
                name="-".join(slug(str(part)) for part in (task, metric, model)),
            )
        )
    return found


def frontier(tradeoff: Tradeoff) -> list[Row]:
    """Rows that no other row beats in both sparsity and quality, from dense to sparse; of each kind of sparsity."""
    sign = 1 if tradeoff.higher_is_better else -1
    kept: list[Row] = []
    for kind in tradeoff.kinds:
        best = -math.inf
        rows = [row for row in tradeoff.rows if kind_of(row) == kind]
        chosen = []
        for row in sorted(rows, key=lambda r: (-r["sparsity"], -sign * r["value"])):
            if sign * row["value"] > best:
                best = sign * row["value"]
                chosen.append(row)
        kept += reversed(chosen)
    return kept


def kind_of(row: Row) -> str:
    """What a row's sparsity is a share of."""
    return printable(row["sparsity_of"] or row["family"], 40)
