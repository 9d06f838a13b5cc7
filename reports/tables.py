"""The tidy table for people and for other programs: terminal, Markdown, CSV, JSON, LaTeX and Parquet."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.cells import cell_len

from sparsebench.errors import UnknownNameError
from sparsebench.reports import notation
from sparsebench.reports.collect import COLUMNS as MEANINGS
from sparsebench.reports.collect import TEXT, WHOLE
from sparsebench.reports.notation import VERDICTS, printable
from sparsebench.reports.realised_budget import NOT_MET

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

FORMATS = ("table", "md", "csv", "json", "latex", "parquet")
TEXT_FORMATS = ("md", "csv", "json", "latex")


def render(table: pd.DataFrame, format: str) -> str:
    """The tidy table as text in one of `TEXT_FORMATS`.

    Raises:
        UnknownNameError: Another format.
    """
    writers: dict[str, Callable[[pd.DataFrame], str]] = {"md": markdown, "csv": csv, "json": to_json, "latex": latex}
    if format not in writers:
        raise UnknownNameError("format", format, writers)
    return writers[format](table)


@dataclass(frozen=True)
class Column:
    """A column of a table for people.

    Attributes:
        title: Its heading.
        text: What it shows of a row.
        number: Whether it is aligned as a number.
        rank: Which columns go first where there is no room: the highest; 0 stays.
    """

    title: str
    text: Callable[[dict[str, Any]], str]
    number: bool = False
    rank: int = 0


def _method(row: dict[str, Any]) -> str:
    name = printable(row["method"], 40)
    if row["role"] == "noise":
        return printable(row["label"], 40) or name
    if row["role"] in ("baseline", "method", ""):
        return name
    return f"{name} ({printable(row['role'])})"


def _delta(row: dict[str, Any]) -> str:
    return notation.signed(row["delta"], _places(row))


def _interval(row: dict[str, Any]) -> str:
    return notation.interval(row["delta_low"], row["delta_high"], _places(row))


def _places(row: dict[str, Any]) -> int | None:
    return notation.decimals(row["dense"]) if notation.known(row["dense"]) and math.isfinite(row["dense"]) else None


def verdict_text(row: dict[str, Any]) -> str:
    """Symbol and word."""
    mark = VERDICTS.get(row["verdict"])
    return f"{mark.symbol} {row['verdict']}" if mark else printable(row["verdict"])


COLUMNS = (
    Column("method", _method),
    Column("config", lambda r: printable(r["config"], 40), rank=7),
    Column("calibration", lambda r: printable(r["calibration"], 48), rank=9),
    Column("seed", lambda r: notation.count(r["seed"]), number=True, rank=8),
    Column("budget", lambda r: printable(r["budget"], 24)),
    Column("sparsity", lambda r: notation.percent(r["sparsity"]), number=True, rank=2),
    Column("FLOPs", lambda r: notation.ratio(r["flops_ratio"]), number=True, rank=4),
    Column("metric", lambda r: printable(r["metric"], 24), rank=5),
    Column("value", lambda r: notation.number(r["value"], _places(r)), number=True, rank=1),
    Column("delta", _delta, number=True),
    Column("interval", _interval, number=True, rank=3),
    Column("n", lambda r: notation.count(r["n"]), number=True, rank=6),
    Column("speed", lambda r: printable(r["speed"], 60), rank=5),
    Column("verdict", verdict_text),
)


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Headline metrics and failed cells: what verdicts rest on."""
    return table[table["headline"] | (table["status"] == "failed")]


def groups(table: pd.DataFrame) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Headline rows by suite, family, model and task, each group from its baseline to its sparsest row."""
    rows = headline_rows(table)
    baselines = rows[rows["role"] == "baseline"]
    several = [key for key in ("source", "suite") if rows[key].nunique() > 1]
    order = ["_rank", "method", "config", "metric", "sparsity", "seed"]
    rows = rows.assign(_rank=rows["role"].map(lambda role: {"baseline": 0, "noise": 1}.get(role, 2)))
    keys = [*several, "family", "task", "model"]
    for key, group in rows.sort_values([*keys, *order], kind="stable").groupby(keys, sort=False):
        shared = baselines[baselines["cell"].isin(group["baseline"]) & ~baselines["cell"].isin(group["cell"])]
        shown = pd.concat([shared.drop_duplicates(["cell", "metric"]), group.drop(columns="_rank")])
        names = [
            *(printable(name) for name in key[:-1] if name),
            *([notation.model_name(str(key[-1]))] if key[-1] else []),
        ]
        yield " · ".join(names) or "unreadable cells", shown.to_dict("records")  # type: ignore[misc]


def terminal(table: pd.DataFrame, width: int = 100) -> RenderableType:
    """The headline rows for a terminal of some width; where there is no room, columns are left out."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for title, rows in groups(table):
        parts += [Text(title, style="bold"), _grid(rows, width)]
        parts += [Text(f"  ✕ {_method(r)}: {printable(r['reason'], 200)}") for r in rows if r["status"] == "failed"]
        parts += [Text(f"  ! {line}") for line in _not_met(rows)]
        parts.append(Text(""))
    return Group(*parts, Text(summary(table)))


def _not_met(rows: Iterable[dict[str, Any]]) -> list[str]:
    """For each row that was far less sparse than asked, that it was."""
    found = (r for r in rows if NOT_MET in str(r["reason"]) and r["status"] != "failed")
    lines = (f"{_method(r)} {r['budget']}: {NOT_MET}{str(r['reason']).partition(NOT_MET)[2]}" for r in found)
    return [printable(line, 200) for line in dict.fromkeys(lines)]


def print_terminal(table: pd.DataFrame, console: Console | None = None) -> None:
    """Print the headline rows."""
    from rich.console import Console

    console = console or Console()
    console.print(terminal(table, console.width), markup=False, highlight=False)


TELLING = ("config", "calibration", "seed")
"""Columns that are shown where rows could not be told apart without them, whatever the room."""


def _telling(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Those of `TELLING` in which rows of one method, budget and metric differ."""
    values: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    texts = {column.title: column.text for column in COLUMNS}
    for row in rows:
        alike = values.setdefault(
            (row["role"], row["method"], row["budget"], row["metric"]), {t: set() for t in TELLING}
        )
        for title in TELLING:
            alike[title].add(texts[title](row))
    return {title for alike in values.values() for title in TELLING if len(alike[title]) > 1}


def _fitting(rows: Sequence[dict[str, Any]], width: int) -> list[Column]:
    """The columns that have something to show and room to show it, and those that tell rows apart."""
    lengths = {c.title: max(cell_len(c.text(row)) for row in rows) for c in COLUMNS}
    needed = _telling(rows) | {column.title for column in COLUMNS if column.rank == 0}
    shown = [column for column in _columns(rows) if lengths[column.title] or column.rank == 0]
    while sum(max(cell_len(c.title), lengths[c.title]) + 3 for c in shown) > width:
        spare = [column for column in shown if column.title not in needed]
        if not spare:
            break
        shown.remove(max(spare, key=lambda c: c.rank))
    return shown


def _columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """All columns, less calibration and seed where they tell nothing apart, and a speed that nothing has."""
    needed = _telling(rows) | ({"speed"} if any(row["speed"] for row in rows) else set())
    return [c for c in COLUMNS if c.title not in ("calibration", "seed", "speed") or c.title in needed]


def _grid(rows: Sequence[dict[str, Any]], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    shown = _fitting(rows, width)
    for column in shown:
        grid.add_column(column.title, justify="right" if column.number else "left", no_wrap=column.number)
    for row in rows:
        mark = VERDICTS.get(row["verdict"])
        # Text, never a string: a name in square brackets must not become a style.
        cells = [Text(column.text(row)) for column in shown]
        cells[-1].stylize(mark.style if mark else "")
        grid.add_row(*cells)
    return grid


def summary(table: pd.DataFrame) -> str:
    """How many headline verdicts of each kind there are: `3 regressed, 5 non-inferior`."""
    counts = headline_rows(table)["verdict"].value_counts()
    named = [f"{counts[name]} {name}" for name in VERDICTS if name in counts and name not in ("baseline", "noise")]
    return ", ".join(named) or "no verdicts"


def markdown(table: pd.DataFrame) -> str:
    """The headline rows as Markdown tables, one for each family, model and task."""
    lines: list[str] = []
    for title, rows in groups(table):
        lines += [f"### {escape_markdown(title)}", ""]
        columns = _columns(rows)
        lines.append("| " + " | ".join(column.title for column in columns) + " |")
        lines.append("| " + " | ".join("---:" if column.number else "---" for column in columns) + " |")
        lines += ["| " + " | ".join(escape_markdown(column.text(row)) for column in columns) + " |" for row in rows]
        failed = [row for row in rows if row["status"] == "failed"]
        lines += [
            "",
            *(
                f"- {escape_markdown(_method(r))} failed: {escape_markdown(printable(r['reason'], 200))}"
                for r in failed
            ),
            *(f"- {escape_markdown(line)}" for line in _not_met(rows)),
        ]
        lines.append("")
    return "\n".join([*lines, summary(table), ""])


def escape_markdown(text: str) -> str:
    """Text with everything escaped that Markdown or HTML would read as markup."""
    for character in "\\`*_{}[]<>|#~":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("://", ":&#8203;//")


def csv(table: pd.DataFrame) -> str:
    """The whole table as CSV. Texts that a spreadsheet would take for a formula get an apostrophe in front."""
    safe = table.copy()
    for name, (kind, _) in MEANINGS.items():
        if kind == TEXT:
            safe[name] = safe[name].map(_no_formula)
        elif kind == WHOLE:
            safe[name] = safe[name].astype("Int64")
    return safe.to_csv(index=False, lineterminator="\n")


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_json(table: pd.DataFrame) -> str:
    """The whole table as a JSON list of objects; what is not known is null."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in records(table)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain data; NaN and infinities are None, for JSON has no word for either."""
    whole = {name for name, (kind, _) in MEANINGS.items() if kind == WHOLE}
    columns = {name: [_plain(value, name in whole) for value in table[name].tolist()] for name in table.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any, whole: bool) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if whole else value


def latex(table: pd.DataFrame) -> str:
    """The headline rows as LaTeX tables for `booktabs`."""
    parts = ["% needs \\usepackage{booktabs,amssymb}"]
    for title, rows in groups(table):
        telling = _telling(rows)
        shown = [column for column in _columns(rows) if column.title != "config" or column.title in telling]
        parts += [
            "\\begin{table}",
            f"\\caption{{{_latex(title)}}}",
            f"\\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in shown)}}}",
            "\\toprule",
            " & ".join(_latex(column.title) for column in shown) + r" \\",
            "\\midrule",
            *(" & ".join(_latex(column.text(row)) for column in shown) + r" \\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    return "\n".join([*parts, ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    "[": "{[}",
    "]": "{]}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    notation.MINUS: "$-$",
    notation.TIMES: r"$\times$",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "●": r"$\bullet$",
    "○": r"$\circ$",
    "◆": r"$\blacklozenge$",
    "≈": r"$\approx$",
    "∅": r"$\emptyset$",
    "✕": r"$\times$",
    "\N{EN DASH}": "--",
}


def _latex(text: str) -> str:
    """Text with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def parquet(table: pd.DataFrame, path: str | Path | None = None) -> bytes:
    """The whole table as Parquet; also written to `path`, where one is given."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    content = buffer.getvalue()
    if path is not None:
        Path(path).write_bytes(content)
    return content
