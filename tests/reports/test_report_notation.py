import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.reports import notation


@given(st.text())
def test_printable_is_one_line_of_visible_text(text: str) -> None:
    shown = notation.printable(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", shown)
    assert notation.printable(shown) == shown
    assert len(notation.printable(text, 10)) <= 10


@given(st.text())
def test_slugs_are_safe_file_names(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", notation.slug(text))
    assert len(notation.slug(text)) < 80


@given(st.lists(st.text(), unique=True, max_size=20))
def test_slugs_keep_names_apart(texts: list[str]) -> None:
    assert len({notation.slug(text) for text in texts}) == len(texts)


def test_slugs_of_plain_names_are_the_names() -> None:
    assert notation.slug("wanda") == "wanda" and notation.slug("facts-qa") == "facts-qa"
    assert notation.slug("index") != "index" and notation.slug("../../etc/passwd").count("/") == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        (0.4304, "0.430"),
        (-0.0001, "0.000"),
        (20.81, "20.81"),
        (-3.5, "\u22123.500"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
        (2.5e8, "2.50e+08"),
        (float("inf"), "∞"),
        (0, "0.000"),
    ],
)
def test_numbers(value: float | None, expected: str) -> None:
    assert notation.number(value) == expected


def test_differences_and_intervals() -> None:
    assert (
        notation.signed(0.0123) == "+0.012"
        and notation.signed(-0.5) == "\u22120.500"
        and notation.signed(1e-9) == "0.000"
    )
    assert notation.interval(-0.034, 0.01) == "[\u22120.034, +0.010]"
    assert notation.interval(None, 0.01) == "[\u2212∞, +0.010]" and notation.interval(None, None) == ""
    assert (
        notation.percent(0.5) == "50.0%" and notation.ratio(0.6) == "0.60\u00d7" and notation.p_value(1e-5) == "<0.001"
    )


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("pypi:llm==0.1#pkg/SmolLM2.Q4_1.gguf&sha256=abc", "SmolLM2.Q4_1.gguf"),
        ("hf:org/name@main", "org/name@main"),
        ("path:/home/me/models/tiny/", "tiny"),
        ("lexical", "lexical"),
        ("pypi:a-package==0.1.1#data/model&sha256=00", "a-package/data/model"),
        ("", ""),
    ],
)
def test_model_names(reference: str, expected: str) -> None:
    assert notation.model_name(reference) == expected


def test_large_values_keep_no_decimals_of_small_ones() -> None:
    assert notation.number(36042.6, 2) == "36,043" and notation.number(24.8812, 2) == "24.88"
    assert notation.signed(182.594, 2) == "+182.59"
