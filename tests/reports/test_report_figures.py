import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from sparsebench.reports import figures
from sparsebench.reports.tradeoffs import Tradeoff, frontier
from sparsebench.reports.tradeoffs import tradeoffs as find_tradeoffs


@pytest.fixture(scope="module")
def tradeoffs(table: pd.DataFrame) -> list[Tradeoff]:
    return find_tradeoffs(table)


def test_one_figure_for_each_headline_metric_with_signal(tradeoffs: list[Tradeoff]) -> None:
    assert [(t.task, t.metric) for t in tradeoffs] == [
        ("easy-choice", "accuracy"),
        ("facts-qa", "non_prior_accuracy"),
        ("needle-4k", "recall"),
        ("prose-perplexity", "perplexity"),
        ("toy-search", "nDCG@10"),
    ]


def test_kinds_of_sparsity_have_panels_of_their_own(tradeoffs: list[Tradeoff], table: pd.DataFrame) -> None:
    perplexity = tradeoffs[3]
    assert perplexity.kinds == ["attention pairs (decode)", "inputs of linear layers", "prunable weights"]
    figure = figures.draw(perplexity, figures.styles(table))
    assert len(figure.axes) == 6
    assert all(axes.get_xlim()[0] > axes.get_xlim()[1] for axes in figure.axes[1::2]), "FLOPs: sparser to the right"


def test_every_point_is_in_view(tradeoffs: list[Tradeoff], table: pd.DataFrame) -> None:
    for tradeoff in tradeoffs:
        figure = figures.draw(tradeoff, figures.styles(table))
        left = figure.axes[::2]
        for axes, kind in zip(left, tradeoff.kinds, strict=True):
            low, high = axes.get_ylim()
            for row in tradeoff.rows:
                if row["sparsity_of"] == kind:
                    assert low < row["value"] < high
                    assert axes.get_xlim()[0] < row["sparsity"] < axes.get_xlim()[1]


def test_controls_bounds_and_methods_are_told_apart_without_colour(table: pd.DataFrame) -> None:
    style = figures.styles(table)
    shapes = {key: (s.marker, s.line, s.filled) for key, s in style.items()}
    assert shapes["random-weights", ""] == ("x", ":", True)
    assert shapes["oracle-tokens", ""] == ("*", "--", False)
    assert len(set(shapes.values())) == len(shapes)


def contrast(colour: str, ground: str) -> float:
    def luminance(hexed: str) -> float:
        parts = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_readable_on_light_and_on_dark() -> None:
    for colour in figures.COLOURS:
        assert contrast(colour, "#ffffff") >= 3 and contrast(colour, "#13161a") >= 3, colour
    assert contrast(figures.NEUTRAL, "#ffffff") >= 4.5 and contrast(figures.NEUTRAL, "#000000") >= 4.5


def test_the_frontier_is_not_beaten(tradeoffs: list[Tradeoff]) -> None:
    for tradeoff in tradeoffs:
        sign = 1 if tradeoff.higher_is_better else -1
        front = frontier(tradeoff)
        for kind in tradeoff.kinds:
            mine = [row for row in front if row["sparsity_of"] == kind]
            assert all(
                a["sparsity"] < b["sparsity"] and sign * a["value"] > sign * b["value"] for a, b in pairwise(mine)
            )
            for row in (r for r in tradeoff.rows if r["sparsity_of"] == kind):
                assert any(f["sparsity"] >= row["sparsity"] and sign * f["value"] >= sign * row["value"] for f in mine)


def test_svg_is_valid_real_text_and_the_same_each_time(tradeoffs: list[Tradeoff], table: pd.DataFrame) -> None:
    tradeoff = tradeoffs[1]
    first, second = (figures.svg(figures.draw(tradeoff, figures.styles(table)), "salt") for _ in range(2))
    assert first == second
    root = ET.fromstring(first)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("non_prior_accuracy" in text for text in texts)
    assert any("<script>" in text for text in texts), "names are shown as text"
    assert not any(element.tag.endswith("script") for element in root.iter())
    assert "202" not in re.sub(r'="[^"]*"', "", first.split("<svg")[0]), "no date"


def test_inline_figures_take_the_pages_colour_and_unique_ids(tradeoffs: list[Tradeoff], table: pd.DataFrame) -> None:
    text = figures.svg(figures.draw(tradeoffs[0], figures.styles(table)), "salt")
    inline = figures.inline(text, "a &amp; b", "p1")
    root = ET.fromstring(inline)
    assert root.get("aria-label") == "a & b" and root.get("role") == "img"
    assert figures.NEUTRAL not in inline and "currentColor" in inline
    ids = re.findall(r'\bid="([^"]+)"', inline)
    assert ids and all(i.startswith("p1-") for i in ids)
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', inline):
        assert next(filter(None, reference)) in ids


def test_files(table: pd.DataFrame, tmp_path: Path) -> None:
    few = table[table["task"] == "toy-search"]
    paths = figures.write_figures(few, tmp_path)
    assert [p.suffix for p in paths] == [".svg", ".png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in figures.write_figures(few, tmp_path)] == before


@pytest.mark.filterwarnings("error")
def test_odd_tables_still_draw(table: pd.DataFrame) -> None:
    few = table[(table["task"] == "easy-choice")].copy()
    few["flops_ratio"] = math.nan
    few.loc[few["method"] == "wanda", "method"] = "_hidden $x_{1}^"
    (tradeoff,) = find_tradeoffs(few[(few["budget"] == "10%") | (few["role"] == "baseline")])
    figure = figures.draw(tradeoff, figures.styles(few))
    assert len(figure.axes) == 1, "no panel without points"
    assert "_hidden $x_{1}^" in figures.svg(figure, "salt")


def test_more_series_than_a_legend_holds(table: pd.DataFrame) -> None:
    row = table[(table["method"] == "wanda") & (table["task"] == "easy-choice") & table["headline"]].head(1)
    many = pd.concat([row.assign(method=f"m{k:03}", sparsity=0.1 + k / 1000, value=0.6 - k / 1000) for k in range(60)])
    (tradeoff,) = find_tradeoffs(many.reset_index(drop=True))
    text = figures.svg(figures.draw(tradeoff, figures.styles(many)), "salt")
    assert f"{60 - figures.MOST_SERIES} further" in text
