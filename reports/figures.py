"""Quality against what it saves: one figure for each model, task and headline metric.

Left, the metric against the realised sparsity; right, against FLOPs. What a sparsity is a share of differs between
families (weights, attention pairs, terms), so each kind has a row of panels of its own. The line is the baseline, the
band around it the declared margin, and bars are intervals of the paired difference from the baseline. Files are the
same bytes each time.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsebench.reports.asked import axis
from sparsebench.reports.notation import known, printable
from sparsebench.reports.tradeoffs import Row, Tradeoff, frontier, kind_of, tradeoffs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

NEUTRAL = "#767676"
"""Axes and text: 4.5 to 1 against white and against black."""
COLOURS = ("#2f7fc1", "#d2601a", "#1d9a6c", "#b0569c", "#a9802a", "#5a6fd6", "#c9485b", "#3f97a6")
"""Told apart by colour-blind readers in this order, and at least 3 to 1 against white and near-black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")
MOST_SERIES = 24
"""Series with a legend entry; further ones are drawn without colour."""
MOST_BARS = 400
"""Points up to which intervals are drawn."""


@dataclass(frozen=True)
class Style:
    """How a series is drawn; shape and line differ wherever colours do."""

    colour: str
    marker: str
    line: str
    filled: bool = True


def styles(table: pd.DataFrame) -> dict[tuple[str, str], Style]:
    """A style for each (method, config), the same in all figures of a table."""
    chosen: dict[tuple[str, str], Style] = {}
    rows = table[~table["role"].isin(["baseline", "noise"])]
    series = rows[["family", "method", "config", "role"]].drop_duplicates(["method", "config"])
    coloured = 0
    for _, method, config, role in sorted(series.itertuples(index=False, name=None)):
        if role == "control":
            style = Style(NEUTRAL, "x", ":")
        elif role == "bound":
            style = Style(NEUTRAL, "*", "--", filled=False)
        else:
            k = coloured
            colour = COLOURS[(k + k // len(COLOURS)) % len(COLOURS)]
            line = "-." if role == "comparator" else ("-", "--")[k // 16 % 2]
            style = Style(colour, MARKERS[k % len(MARKERS)], line, filled=k // len(MARKERS) % 2 == 0)
            coloured += 1
        chosen[method, config] = style
    return chosen


def draw(tradeoff: Tradeoff, style: dict[tuple[str, str], Style]) -> Figure:
    """The figure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        axes_x = [("sparsity", "sparsity"), ("flops_ratio", "FLOPs, as a share of dense")]
        shown = [(c, t) for c, t in axes_x if any(known(row[c]) for row in tradeoff.rows)]
        kinds = tradeoff.kinds
        entries = _series(tradeoff.rows)
        legend = 0.25 + 0.19 * math.ceil((min(len(entries), MOST_SERIES) + 1) / 3)
        height = 2.9 * len(kinds) + legend
        figure = Figure(figsize=(4.4 * len(shown) + 0.3, height))
        grid = figure.subplots(len(kinds), len(shown), squeeze=False)
        gap = 0.5
        figure.subplots_adjust(
            left=0.72 / figure.get_figwidth(),
            right=1 - 0.25 / figure.get_figwidth(),
            top=1 - 0.15 / height,
            bottom=(legend + gap) / height,
            hspace=0.42,
            wspace=0.16,
        )
        legend_of = _legend_choice(tradeoff, entries)
        for panels, kind in zip(grid, kinds, strict=True):
            rows = [row for row in tradeoff.rows if kind_of(row) == kind]
            for axes, (column, title) in zip(panels, shown, strict=True):
                if column == "sparsity":
                    title = f"sparsity: share of {kind}" if kind else title
                elif asks := _asks(rows):
                    column, title = "realised", axis(*asks)
                _panel(axes, tradeoff, rows, column, style, legend_of)
                axes.set_xlabel(printable(title, 60))
            panels[0].set_ylabel(printable(tradeoff.metric, 40))
        _legend(figure, tradeoff, legend_of, style, len(entries))
    return figure


def _asks(rows: Iterable[Row]) -> tuple[str, str] | None:
    """What all of these rows were asked to cost a share of, and in which request; None where they were not."""
    found = {(str(row["asked_of"]), str(row["request"])) for row in rows}
    (of, request), *others = found or {("", "")}
    return None if others or not request or not any(known(row["realised"]) for row in rows) else (of, request)


RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": NEUTRAL,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": NEUTRAL,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": NEUTRAL,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
}
"""How all figures look: no background, and grey that light and dark pages can show."""


def _series(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row["method"], row["config"]), []).append(row)
    return dict(sorted(series.items()))


def _legend_choice(tradeoff: Tradeoff, series: dict[tuple[str, str], list[Row]]) -> list[tuple[str, str]]:
    """Series with a legend entry: controls and bounds, then those on the frontier, then by name."""

    def order(key: tuple[str, str]) -> tuple[bool, bool, tuple[str, str]]:
        rows = series[key]
        return rows[0]["role"] not in ("control", "bound"), not any(id(row) in front for row in rows), key

    front = {id(row) for row in frontier(tradeoff)} if len(series) > MOST_SERIES else set()
    return sorted(sorted(series, key=order)[:MOST_SERIES])


def _panel(
    axes: Axes,
    tradeoff: Tradeoff,
    rows: list[Row],
    column: str,
    style: dict[tuple[str, str], Style],
    legend_of: Sequence[tuple[str, str]],
) -> None:
    """One set of axes: baseline, margin, and every series."""
    axes.grid(True)
    if tradeoff.dense is not None:
        if tradeoff.margin is not None:
            low, high = tradeoff.dense - tradeoff.margin, tradeoff.dense + tradeoff.margin
            axes.axhspan(low, high, color=NEUTRAL, alpha=0.12, linewidth=0)
        axes.axhline(tradeoff.dense, color=NEUTRAL, linewidth=1.2)
    bars = len(tradeoff.rows) <= MOST_BARS
    plain = Style(NEUTRAL, ".", "-")
    series = _series(rows)
    for k, (key, members) in enumerate(series.items()):
        aside = _aside(axes, k, len(series))
        known_style = style[key] if key in legend_of else plain
        _draw_series(axes, members, column, known_style, bars, aside, faint=key not in legend_of)
    _limits(axes, tradeoff, rows, column, bars)


def _limits(axes: Axes, tradeoff: Tradeoff, rows: list[Row], column: str, bars: bool) -> None:
    """Room for every point, bar and baseline; perplexities that explode get a logarithmic scale."""
    at = [row[column] for row in rows if known(row[column])]
    heights = [row["value"] for row in rows]
    heights += [end for row in rows if bars for end in _ends(row) or ()]
    if tradeoff.dense is not None:
        margin = tradeoff.margin or 0.0
        heights += [tradeoff.dense, tradeoff.dense - margin, tradeoff.dense + margin]
    low, high = min(heights), max(heights)
    values = [row["value"] for row in rows]
    if min(values) >= 0:
        # Intervals may reach beyond what the metric can be.
        low = max(low, 0.0)
        high = min(high, 1.0) if max(values) <= 1 else high
    if low > 0 and high > 5 * low and not tradeoff.higher_is_better:
        log_scale(axes, decades=math.log10(high / low))
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    else:
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        axes.set_ylim(low - pad, high + pad)
        axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=7)
    if at:
        pad = 0.06 * (max(at) - min(at)) or 0.05
        ends = (min(at) - pad, max(at) + pad)
        # Sparser to the right in both panels.
        axes.set_xlim(*(ends if column == "sparsity" else ends[::-1]))


def _aside(axes: Axes, k: int, count: int) -> Transform:
    """Data coordinates, moved aside by a point or two so that the bars of different series do not hide each other."""
    from matplotlib.transforms import ScaledTranslation

    step = min(2.0, 12 / count) / 72
    return axes.transData + ScaledTranslation((k - (count - 1) / 2) * step, 0, axes.figure.dpi_scale_trans)


def log_scale(axes: Axes, decades: float) -> None:
    """A logarithmic scale with plain numbers: formulas are no text here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1e5 else f"{x:.0e}".replace("e+0", "e")))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_series(
    axes: Axes, rows: list[Row], column: str, style: Style, bars: bool, place: Transform, *, faint: bool
) -> None:
    """Points of one series, a line through their means at each x, and bars."""
    points = sorted(((row[column], row["value"], row) for row in rows if known(row[column])), key=lambda p: p[:2])
    if not points:
        return
    means: dict[float, list[float]] = {}
    for x, y, _ in points:
        means.setdefault(round(x, 4), []).append(y)
    opacity = 0.35 if faint else 1.0
    line = [sum(ys) / len(ys) for ys in means.values()]
    axes.plot(list(means), line, style.line, color=style.colour, alpha=0.8 * opacity, linewidth=1.2, transform=place)
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        style.marker,
        color=style.colour,
        alpha=opacity,
        markerfacecolor=style.colour if style.filled else "none",
        transform=place,
    )
    spread = [(x, y, _ends(row)) for x, y, row in points]
    drawn = [(x, y, ends) for x, y, ends in spread if ends is not None]
    if bars and drawn and not faint:
        low = [max(y - ends[0], 0) for _, y, ends in drawn]
        high = [max(ends[1] - y, 0) for _, y, ends in drawn]
        axes.errorbar(
            [x for x, _, _ in drawn],
            [y for _, y, _ in drawn],
            yerr=[low, high],
            fmt="none",
            ecolor=style.colour,
            elinewidth=1,
            alpha=0.55,
            capsize=2,
            transform=place,
        )


def _ends(row: Row) -> tuple[float, float] | None:
    """The paired interval around the baseline's value."""
    low, high, dense = row["delta_low"], row["delta_high"], row["dense"]
    return (dense + low, dense + high) if all(known(x) and math.isfinite(x) for x in (low, high, dense)) else None


def _legend(
    figure: Figure,
    tradeoff: Tradeoff,
    legend_of: Sequence[tuple[str, str]],
    style: dict[tuple[str, str], Style],
    series: int,
) -> None:
    from matplotlib.lines import Line2D

    roles = {(row["method"], row["config"]): row["role"] for row in tradeoff.rows}
    handles, labels = [Line2D([], [], color=NEUTRAL, linewidth=1.2)], ["baseline, with the declared margin"]
    for key in legend_of:
        s = style[key]
        face = s.colour if s.filled else "none"
        handles.append(Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker, markerfacecolor=face))
        role = f" ({roles[key]})" if roles[key] != "method" else ""
        # matplotlib leaves out labels that begin with an underscore.
        labels.append(f"\u200a{printable(f'{key[0]} {key[1]}', 36)}{role}")
    if series > len(legend_of):
        handles.append(Line2D([], [], color=NEUTRAL, marker=".", alpha=0.35))
        labels.append(f"{series - len(legend_of)} further")
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=3, fontsize=8, handlelength=2.6)


def svg(figure: Figure, salt: str) -> str:
    """The figure as SVG with real text: the same bytes for the same data."""
    import matplotlib as mpl

    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**RC, "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG on a transparent ground."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def inline(text: str, label: str, prefix: str) -> str:
    """An SVG of `svg` for use inside a page: its axes take the page's text colour, its ids a prefix.

    Args:
        text: The SVG.
        label: What it shows, for those who cannot see it; must be escaped already.
        prefix: Unique in the page, and safe in an id.
    """
    body = text[text.index("<svg") :].strip()
    head, rest = body.split(">", 1)
    size = re.search(r'viewBox="[\d. ]+"', head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = rest.replace(NEUTRAL, "currentColor")
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'href="#', f'href="#{prefix}-', rest)
    rest = re.sub(r"url\(#", f"url(#{prefix}-", rest)
    xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {xmlns} {size[0] if size else ""} role="img" aria-label="{label}">{rest}'


def write_figures(table: pd.DataFrame, folder: str | Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write every figure of a table into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    style = styles(table)
    written = []
    for tradeoff in tradeoffs(table):
        figure = draw(tradeoff, style)
        for format in formats:
            path = folder / f"{tradeoff.name}.{format}"
            path.write_bytes(svg(figure, tradeoff.name).encode() if format == "svg" else png(figure))
            written.append(path)
    return written
