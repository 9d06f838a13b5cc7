"""What each comparison of a plan can see, before anything is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.metrics import Metric
    from sparsebench.plan import Plan
    from sparsebench.suite import Conclude, Margin

TYPICAL = 0.5
"""Value of a binary metric that a relative margin is turned into points with, before the baseline is known."""


@dataclass(frozen=True)
class PlannedComparison:
    """The power of one metric of one task, with the assumptions of the suite.

    Attributes:
        margin: As printed.
        detectable: Smallest loss that is seen with the suite's power, as printed.
        needed: Samples that the margin needs, as printed.
    """

    task: str
    metric: str
    n: int
    margin: str
    detectable: str
    powered: bool
    needed: str


def comparisons(plan: Plan) -> list[PlannedComparison]:
    """The headline metrics of every task, once each."""
    conclude = plan.suite.conclude
    found: dict[tuple[str, str], PlannedComparison] = {}
    for bound in plan.tasks.values():
        for metric in bound.metrics:
            if metric.headline and (bound.spec.id, metric.name) not in found:
                margin = conclude.margin(bound.spec.id, metric.name)
                found[bound.spec.id, metric.name] = _planned(
                    bound.spec.id, metric, bound.workload.samples, margin, conclude
                )
    return list(found.values())


def _planned(task: str, metric: Metric, n: int, margin: Margin | None, conclude: Conclude) -> PlannedComparison:
    from sparsebench.stats import mde_binary, mde_continuous, required_n_binary, required_n_continuous

    alpha, power = conclude.alpha, conclude.power
    binary = metric.kind == "binary"
    detectable = (
        mde_binary(conclude.discordance, n, alpha=alpha, power=power)
        if binary
        else mde_continuous(conclude.spread, n, alpha=alpha, power=power)
    )
    if binary and margin and margin.points and margin.points >= 1:
        raise InputError(
            f"the margin of {margin.points:g} for {metric.name} of {task} allows everything to be lost",
            "points are shares: 0.02 for two points of a hundred",
        )
    if metric.transform == "exp" and margin and margin.points:
        allowed = f"{margin.points:g} (absolute)"  # how much of the baseline that is, the baseline will tell
        return PlannedComparison(task, metric.name, n, allowed, _shown(metric, detectable), False, "")
    size = _size(metric, margin)
    if size is None:
        return PlannedComparison(task, metric.name, n, "none", _shown(metric, detectable), False, "")
    needed = (
        required_n_binary(conclude.discordance, size, alpha=alpha, power=power)
        if binary
        else required_n_continuous(conclude.spread, size, alpha=alpha, power=power)
    )
    printed = f"{margin.relative:.1%} relative" if margin and margin.relative else f"{100 * size:.3g} points"
    return PlannedComparison(task, metric.name, n, printed, _shown(metric, detectable), detectable <= size, str(needed))


def _size(metric: Metric, margin: Margin | None) -> float | None:
    if margin is None:
        return None
    if margin.relative is None:
        return margin.points
    return math.log1p(margin.relative) if metric.transform == "exp" else margin.relative * TYPICAL


def _shown(metric: Metric, effect: float) -> str:
    return f"{math.expm1(effect):.1%}" if metric.transform == "exp" else f"{100 * effect:.1f} points"
