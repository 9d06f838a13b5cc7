"""How sparse a method may be and still keep its quality, from the tidy table."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparsebench.reports.verdicts import TESTED_ROLES
from sparsebench.stats import largest_safe

KEYS = ("source", "suite", "grid", "family", "model", "dtype", "mode", "protocol", "method", "config", "task", "metric")

NOTHING_TO_SAY = {"no signal", "not exercised"}


@dataclass(frozen=True)
class SafeSparsity:
    """The largest sparsity at which a method keeps a metric, every lower one tested included.

    Attributes:
        row: Any row of the series: its family, model, method, config, task, metric and `sparsity_of`.
        largest: The largest safe sparsity; None where the lowest tested already fails.
        first_failure: The lowest one that fails; None where none does.
        levels: How many were tested.
        obstacle: Why nothing can be concluded at any level: `no signal`, `not exercised`; empty where something can.
        corrected: The largest that the verdicts show, which are corrected between methods; None where there is none.
    """

    row: dict[str, Any]
    largest: float | None
    first_failure: float | None
    levels: int
    obstacle: str
    corrected: float | None = None


def safe_sparsities(table: pd.DataFrame) -> list[SafeSparsity]:
    """The largest safe sparsity of every method on every headline metric.

    Levels are tested in order from the least sparse, each at the full alpha: the sequence needs no correction. Seeds
    of one level count as the worst of them. A level at which nothing could be shown (no margin, noise, too few decode
    queries) fails.
    """
    rows = table[table["headline"] & table["role"].isin(TESTED_ROLES) & table["sparsity"].notna()]
    rows = rows[~rows["budget"].astype(str).str.endswith(" bits")]  # other bits are no other sparsity
    found = []
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in rows.to_dict("records"):  # at once: a frame a group costs a hundred times as much
        groups[tuple(record[key] for key in KEYS)].append({str(name): value for name, value in record.items()})
    for _, series in sorted(groups.items()):
        worst: dict[float, float] = defaultdict(float)
        adjusted: dict[float, float] = defaultdict(float)
        for row in series:
            level = round(row["sparsity"], 4)
            worst[level] = max(worst[level], _or_one(row["p_noninferior"]))
            adjusted[level] = max(adjusted[level], _or_one(row["p_kept"]))
        alpha = series[0]["alpha"]
        result = largest_safe(list(worst), list(worst.values()), alpha)
        # A level that is shown after correction is shown by itself.
        both = [max(worst[level], adjusted[level]) for level in worst]
        corrected = largest_safe(list(worst), both, alpha).level
        verdicts = {row["verdict"] for row in series}
        obstacle = verdicts.pop() if len(verdicts) == 1 and verdicts <= NOTHING_TO_SAY else ""
        found.append(SafeSparsity(series[0], result.level, result.first_failure, len(worst), obstacle, corrected))
    return found


@dataclass(frozen=True)
class CostOfKeeping:
    """What a method costs at the sparsest level that keeps quality on every task: one number a method.

    Attributes:
        row: Any row of the method: its family, model, method and config.
        budget: That level as it was asked for; empty where the lowest tested already fails.
        flops: FLOPs over the dense system's there, of the task on which most remain.
        bytes: Bytes a decoded token, likewise; None where no task decodes.
        tasks: How many tasks it had to hold on.
    """

    row: dict[str, Any]
    budget: str
    flops: float | None
    bytes: float | None
    tasks: int


def costs_of_keeping(table: pd.DataFrame) -> list[CostOfKeeping]:
    """The cost of each method at its largest level that is safe on all tasks with signal, by the table's own margins.

    A level is safe where its loss is below the margin on every task and headline metric (intersection-union), and
    levels are tested in order from the least sparse, as in `safe_sparsities`.
    """
    rows = table[table["headline"] & table["role"].isin(TESTED_ROLES) & table["sparsity"].notna()]
    rows = rows[~rows["verdict"].isin(NOTHING_TO_SAY)]
    found = []
    for _, group in rows.groupby([key for key in KEYS if key not in ("task", "metric", "protocol")], sort=True):
        tasks = set(group["task"])
        levels: dict[str, pd.DataFrame] = {str(budget): level for budget, level in group.groupby("budget")}
        order = sorted(levels, key=lambda budget: float(levels[budget]["sparsity"].mean()))
        p = [_worst(levels[budget], tasks) for budget in order]
        first = {str(name): value for name, value in group.iloc[0].items()}
        safe = largest_safe(list(range(len(order))), p, float(first["alpha"]))
        if safe.level is None:
            found.append(CostOfKeeping(first, "", None, None, len(tasks)))
            continue
        level = levels[order[int(safe.level)]]
        flops, read = float(level["flops_ratio"].max()), float(level["bytes_ratio"].max())
        found.append(
            CostOfKeeping(
                first,
                order[int(safe.level)],
                None if math.isnan(flops) else flops,
                None if math.isnan(read) else read,
                len(tasks),
            )
        )
    return found


def _or_one(p: float) -> float:
    return 1.0 if math.isnan(p) else p


def _worst(level: pd.DataFrame, tasks: set[str]) -> float:
    """P value of "it loses more than the margin on some task"; 1 where one was not measured."""
    if set(level["task"]) != tasks:
        return 1.0
    return float(level["p_noninferior"].fillna(1.0).max())
