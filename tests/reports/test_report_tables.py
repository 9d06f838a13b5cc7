import csv
import io
import json
import math
import re

import pandas as pd
import pytest
from rich.console import Console

from sparsebench.errors import UnknownNameError
from sparsebench.reports import tables


def printed(table: pd.DataFrame, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    tables.print_terminal(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_terminal_fits_its_width_and_keeps_verdicts(table: pd.DataFrame, width: int) -> None:
    lines = plain(printed(table, width)).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for verdict in ("non-inferior", "regressed", "no signal", "failed"):
        assert verdict in text


def test_terminal_shows_what_was_asked_for(table: pd.DataFrame) -> None:
    text = plain(printed(table, 200))
    assert "pruning · facts-qa" in text and "wanda" in text and "50.0%" in text and "0.60\u00d7" in text
    assert "random-weights (control)" in text and "out of memory" in text
    activation = text[text.index("activation · facts-qa") : text.index("activation · prose")]
    assert "◆ baseline" in activation, "a baseline that grids share stands in each of their tables"


def test_names_in_brackets_do_not_become_styles_or_escapes(table: pd.DataFrame) -> None:
    text = printed(table, 250)
    assert "[red]" in plain(text)
    assert not re.search(r"\x1b\[(?![0-9;]*m)", text)


def test_summary_counts_headline_verdicts(table: pd.DataFrame) -> None:
    counts = dict(reversed(part.split(" ", 1)) for part in tables.summary(table).split(", "))  # type: ignore[misc]
    headline = table[table["headline"] | (table["status"] == "failed")]
    assert int(counts["regressed"]) == (headline["verdict"] == "regressed").sum()
    assert int(counts["failed"]) == 1


def test_markdown_holds_no_markup_of_a_record(table: pd.DataFrame) -> None:
    text = tables.markdown(table)
    assert not re.search(r"(?<!\\)<", text)
    columns = 0
    for line in text.splitlines():
        if line.startswith("| method"):
            columns = len(re.findall(r"(?<!\\)\|", line))
        elif line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == columns


@pytest.mark.parametrize(("column", "value"), [("config", "owl"), ("calibration", "c4"), ("seed", 17)])
def test_what_tells_rows_apart_is_shown_however_narrow_the_terminal(table: pd.DataFrame, column: str, value) -> None:  # type: ignore[no-untyped-def]
    method = table[table["headline"] & (table["role"] == "method")].iloc[[0]].assign(config="", calibration="", seed=0)
    other = method.assign(**{column: value})
    assert str(value) in plain(printed(pd.concat([method, other]), 60))
    assert column not in plain(printed(method, 60))


def test_csv_has_every_row_and_no_formula(table: pd.DataFrame) -> None:
    hostile = table.copy()
    hostile.loc[0, "label"] = "=HYPERLINK(1)"
    hostile.loc[1, "label"] = "-2+3"
    rows = list(csv.DictReader(io.StringIO(tables.csv(hostile))))
    assert len(rows) == len(table)
    assert rows[0]["label"] == "'=HYPERLINK(1)" and rows[1]["label"] == "'-2+3"
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        assert row["cell"] == expected["cell"]
        assert row["value"] == "" if math.isnan(expected["value"]) else float(row["value"]) == expected["value"]
        assert "." not in row["n"]


def test_json_round_trips_and_has_no_nan(table: pd.DataFrame) -> None:
    rows = json.loads(tables.to_json(table), parse_constant=lambda name: pytest.fail(name))
    assert [row["cell"] for row in rows] == table["cell"].tolist()
    assert [row["value"] for row in rows] == [None if math.isnan(v) else v for v in table["value"]]
    assert isinstance(rows[1]["n"], int) and isinstance(rows[1]["headline"], bool)


def test_latex_escapes_everything(table: pd.DataFrame) -> None:
    text = tables.latex(table)
    assert text.count("\\toprule") == text.count("\\bottomrule") == len(list(tables.groups(table)))
    assert "<script>" not in text and "\\frac" not in text
    columns = 0
    for line in text.splitlines():
        if line.endswith(r"\\"):
            columns = len(re.findall(r"(?<!\\)&", line)) if line.startswith("method") else columns
            assert len(re.findall(r"(?<!\\)&", line)) == columns
            assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
            assert not re.search(r"(?<!\\)[#_%]", line)


def test_parquet_is_the_table_and_the_same_each_time(table: pd.DataFrame, tmp_path) -> None:  # type: ignore[no-untyped-def]
    content = tables.parquet(table, tmp_path / "table.parquet")
    assert content == tables.parquet(table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)


def test_unknown_formats_are_named(table: pd.DataFrame) -> None:
    with pytest.raises(UnknownNameError, match="xlsx"):
        tables.render(table, "xlsx")
    for format in tables.TEXT_FORMATS:
        assert tables.render(table, format).endswith("\n")
