"""Quality at equal cost: curves over the share of the dense cost, and what nothing beats in both.

Methods of all families stand in one panel, since FLOPs (or bytes) are one measure for all of them. Costs are those that
were counted, the work of choosing and repairing included. Rows that a suite asked to cost a share of a request stand in
figures of that request, at what they cost there; the others at their share of the whole cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from sparsebench.reports.asked import axis
from sparsebench.reports.figures import NEUTRAL, RC, Style, log_scale, png, styles, svg
from sparsebench.reports.notation import known, printable, slug
from sparsebench.reports.tradeoffs import Row, Tradeoff, tradeoffs
from sparsebench.timeshares import amdahl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Share = Literal["flops_ratio", "bytes_ratio"]
Measure = Literal["flops_ratio", "bytes_ratio", "realised"]
LEAVES = 3.0
"""Times the largest loss of the methods at which a control or comparator leaves a figure."""
MEASURES: dict[Share, str] = {
    "flops_ratio": "FLOPs, as a share of dense",
    "bytes_ratio": "bytes read for a decoded token, as a share of dense",
}
NEAR = 0.02
"""A cost is at a level when it is that near."""


@dataclass(frozen=True)
class IsoCurve:
    """One series: a method with its knobs.

    Attributes:
        method: The method.
        config: Its knobs as printed.
        role: Its role.
        points: Cost and value, from dear to cheap; the mean of seeds.
    """

    method: str
    config: str
    role: str
    points: tuple[tuple[float, float], ...]


def compared(table: pd.DataFrame) -> list[Tradeoff]:
    """What there is to compare; stacks over several families too, which have a cost and no one sparsity."""
    return tradeoffs(table.assign(sparsity=table["sparsity"].fillna(0.0)))


def costed(tradeoff: Tradeoff, measure: Measure) -> list[Row]:
    """Rows whose cost is known."""
    return [row for row in tradeoff.rows if known(row[measure]) and math.isfinite(row[measure])]


def curves(tradeoff: Tradeoff, measure: Measure) -> list[IsoCurve]:
    """A curve for each method and configuration, by name."""
    series: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for row in costed(tradeoff, measure):
        at = series.setdefault((row["method"], row["config"], row["role"]), {})
        at.setdefault(round(float(row[measure]), 4), []).append(float(row["value"]))
    return [
        IsoCurve(*key, tuple((cost, sum(found) / len(found)) for cost, found in sorted(at.items(), reverse=True)))
        for key, at in sorted(series.items())
    ]


def pareto(tradeoff: Tradeoff, measure: Measure) -> list[Row]:
    """Rows that no other is both cheaper than and at least as good as, from cheap to dear, dense among the others.

    Bounds are no methods and take no part; a row that costs as much as dense or more is none of them.
    """
    sign = 1 if tradeoff.higher_is_better else -1
    rows = [row for row in costed(tradeoff, measure) if row["role"] != "bound" and row[measure] < 1]
    kept, best = [], -math.inf
    for row in sorted(rows, key=lambda r: (r[measure], -sign * r["value"])):
        if sign * row["value"] > best:
            best = sign * row["value"]
            kept.append(row)
    return kept


def iso_table(table: pd.DataFrame, levels: Iterable[float], measure: Measure = "flops_ratio") -> pd.DataFrame:
    """What each method keeps at each level of cost: one row for each task, model, method and configuration.

    A column for each level holds the change from dense of the cell nearest to the level; empty where none is within
    `NEAR` of it, as when the method cannot get there.
    """
    wanted = list(levels)
    found = []
    for tradeoff in compared(table):
        dense = tradeoff.dense if tradeoff.dense is not None else math.nan
        for curve in curves(tradeoff, measure):
            row: dict[str, Any] = {
                "task": tradeoff.task,
                "model": tradeoff.model,
                "metric": tradeoff.metric,
                "method": curve.method,
                "config": curve.config,
                "dense": dense,
            }
            for level in wanted:
                cost, value = min(curve.points, key=lambda point: abs(point[0] - level))
                row[f"{level:g}"] = value - dense if abs(cost - level) <= NEAR else math.nan
            found.append(row)
    columns = ["task", "model", "metric", "method", "config", "dense", *(f"{level:g}" for level in wanted)]
    return pd.DataFrame(found, columns=columns)


def bounds(shares: Mapping[str, float], kept: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The most that Amdahl's law leaves each method to gain, to stand beside a measured speed-up.

    Args:
        shares: Measured share of the dense model's time in each part (`timeshares.measured_shares`).
        kept: For each method the share of a part's work that it keeps: `{"quest 87.5%": {"attention": 0.125}}`.

    Returns:
        Columns `method`, `bound` (how many times as fast) and `of` (the part that bounds it: the largest that is left).
    """
    rows = []
    for method, left in kept.items():
        after = {part: share * left.get(part, 1.0) for part, share in shares.items()}
        rows.append({"method": method, "bound": amdahl(shares, left), "of": max(after, key=lambda part: after[part])})
    return pd.DataFrame(rows, columns=["method", "bound", "of"])


def of_requests(tradeoff: Tradeoff) -> dict[tuple[str, str], Tradeoff]:
    """The rows that were asked to cost a share of a request, by request and what the share is of."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in tradeoff.rows:
        if row["request"]:
            found.setdefault((str(row["request"]), str(row["asked_of"])), []).append(row)
    return {key: replace(tradeoff, rows=rows) for key, rows in sorted(found.items())}


ASKED = ["request", "asked_of", "task", "model", "metric", "method", "config", "role", "asked", "realised"]


def asked_table(table: pd.DataFrame) -> pd.DataFrame:
    """What was asked of each row, what it cost, and what it kept: one row for each task, method and share."""
    points = table[table["headline"] & (table["request"] != "") & (table["status"] == "ok")]
    columns = [*ASKED, "label", "sparsity", "n", "dense", "value", "delta", "delta_low", "delta_high", "verdict"]
    order = ["request", "asked_of", "task", "model", "metric", "method", "config"]
    return points[columns].sort_values([*order, "asked"], ascending=[True] * len(order) + [False], kind="stable")


def draw(tradeoff: Tradeoff, style: Mapping[tuple[str, str], Style], measure: Measure, label: str) -> Figure:
    """Value against cost: every method's curve, the frontier beneath them, and the baseline with its margin."""
    import matplotlib as mpl

    with mpl.rc_context(RC):
        return _drawn(tradeoff, style, measure, label)


def _drawn(tradeoff: Tradeoff, style: Mapping[tuple[str, str], Style], measure: Measure, label: str) -> Figure:
    from matplotlib.figure import Figure

    found = curves(tradeoff, measure)
    legend = 0.25 + 0.19 * math.ceil((len(found) + 2) / 2)
    figure = Figure(figsize=(6.4, 3.6 + legend))
    axes = figure.add_axes((0.11, (0.55 + legend) / (3.6 + legend), 0.86, 2.7 / (3.6 + legend)))
    _baseline(axes, tradeoff)
    front = pareto(tradeoff, measure)
    steps = [(row[measure], row["value"]) for row in front]
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=NEUTRAL, linewidth=5, alpha=0.25, label="frontier")
    for curve in found:
        s = style[curve.method, curve.config]
        name = f"\u200a{printable(f'{curve.method} {curve.config}', 40)}"
        axes.plot(
            *zip(*curve.points, strict=True),
            s.line,
            color=s.colour,
            marker=s.marker,
            markerfacecolor=s.colour if s.filled else "none",
            linewidth=1.2,
            markersize=5,
            label=name + (f" ({curve.role})" if curve.role != "method" else ""),
        )
    if not tradeoff.higher_is_better:
        _losses(axes, tradeoff, costed(tradeoff, measure))
    axes.invert_xaxis()
    axes.set_xlabel(printable(label, 90))
    axes.set_ylabel(printable(tradeoff.metric, 40))
    axes.set_title(printable(f"{tradeoff.task}", 60), fontsize=9)
    figure.legend(loc="lower left", bbox_to_anchor=(0.05, 0.0), ncols=2, fontsize=8, frameon=False)
    return figure


def _losses(axes: Axes, tradeoff: Tradeoff, rows: Sequence[Row]) -> None:
    """A scale for perplexities that explode: what is far above all methods, as controls are, leaves the figure."""
    values = [row["value"] for row in rows]
    methods = [row["value"] for row in rows if row["role"] == "method"] or values
    low = min(values if tradeoff.dense is None else [*values, tradeoff.dense])
    high = min(max(values), LEAVES * max(methods))
    if low > 0 and high > 5 * low:
        log_scale(axes, decades=math.log10(high / low))
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)


def _baseline(axes: Axes, tradeoff: Tradeoff) -> None:
    axes.grid(True, alpha=0.18)
    if tradeoff.dense is None:
        return
    if tradeoff.margin is not None:
        low, high = tradeoff.dense - tradeoff.margin, tradeoff.dense + tradeoff.margin
        axes.axhspan(low, high, color=NEUTRAL, alpha=0.12, linewidth=0)
    axes.axhline(tradeoff.dense, color=NEUTRAL, linewidth=1.2, label="dense, with the declared margin")


def write_isoflop(
    table: pd.DataFrame,
    folder: str | Path,
    measures: Sequence[Share] = tuple(MEASURES),
    formats: Sequence[str] = ("svg", "png"),
) -> list[Path]:
    """Write a figure for each model, task, headline metric and request, or measure of cost, that has points."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    style = styles(table)
    written = []
    for tradeoff in compared(table):
        own = replace(tradeoff, rows=[row for row in tradeoff.rows if not row["request"]])
        drawn: list[tuple[str, Tradeoff, Measure, str]] = [
            (measure.removesuffix("_ratio"), own, measure, MEASURES[measure]) for measure in measures
        ]
        drawn += [
            (f"{slug(request)}-{of}", part, "realised", axis(of, request))
            for (request, of), part in of_requests(tradeoff).items()
        ]
        for kind, part, measure, label in drawn:
            if not costed(part, measure):
                continue
            name = f"iso-{kind}-{tradeoff.name}"
            figure = draw(part, style, measure, label)
            for format in formats:
                path = folder / f"{name}.{format}"
                path.write_bytes(svg(figure, name).encode() if format == "svg" else png(figure))
                written.append(path)
    return written
