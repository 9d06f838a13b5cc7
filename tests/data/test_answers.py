import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.data.answers import first_answer, is_right, normalise


@given(st.text())
def test_normal_text_is_words_apart_by_one_space(text):
    assert re.fullmatch(r"([^\W_]+( [^\W_]+)*)?", normalise(text))


@pytest.mark.parametrize(
    ("response", "accepted", "right"),
    [
        (" Paris.\nThe capital of Spain is", ["Paris"], True),
        (" paris", ["Paris"], True),
        (" Paris, France", ["Paris"], True),
        (" Parisian", ["Paris"], False),
        (" not Paris", ["Paris"], False),
        (" the United States of America.", ["the United States"], True),
        (" São Tomé", ["Sao Tome"], True),
        (" N'Djamena", ["N\u2019Djamena"], True),
        (" St. George's", ["St. George's"], True),
        (" Washington, D.C.", ["Washington"], True),
        (" Niger", ["Nigeria"], False),
        ("", ["Paris"], False),
        ("\n Paris", ["Paris"], True),
        (" .", ["Paris"], False),
        (" anything", [""], False),
        (" 13", ["1"], False),
    ],
)
def test_what_is_right(response, accepted, right):
    assert is_right(response, accepted) is right


def test_the_answer_ends_with_its_line_and_sentence():
    assert first_answer(" one two. three\nfour") == "one two"
    assert first_answer(" 3.5 kg") == "3.5 kg"
    assert first_answer("") == ""
