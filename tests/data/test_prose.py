import re

from hypothesis import given
from hypothesis import strategies as st

from sparsebench.data.embedded import prose
from sparsebench.data.embedded.docstrings import docstrings, topics
from sparsebench.data.embedded.shingles import Novelty, shingles


def test_there_is_much_of_it_and_each_document_once():
    rows = prose.rows()
    assert len({row["id"] for row in rows}) == len(rows) >= 200
    for split in ("calibration", "evaluation"):
        part = prose.rows(split)
        assert {row["split"] for row in part} == {split}
        assert sum(len(row["text"]) for row in part) >= 200_000
    assert len(prose.rows("calibration")) + len(prose.rows("evaluation")) == len(rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)


def test_the_splits_share_hardly_any_run_of_eight_words():
    one, other = (
        set().union(*(shingles(row["text"], 8) for row in prose.rows(split))) for split in ("calibration", "evaluation")
    )
    assert len(one & other) < 0.01 * min(len(one), len(other))


def test_it_reads_as_prose():
    paragraphs = [paragraph for row in prose.rows() for paragraph in row["text"].split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    text = "".join(paragraphs)
    assert sum(sign.isalpha() or sign == " " for sign in text) > 0.95 * len(text)
    assert not re.search(r">>>|::|\\|[{}<>|]|\n|___|\*\*\*|===", text)
    assert all(paragraph[0].isupper() and paragraph[-1] in ".!?" for paragraph in paragraphs)


def test_code_tables_and_lists_are_left_out():
    text = (
        "The first paragraph says in ``many`` words what the *second* one says with less, and it is long enough "
        "to be kept.\n\n    >>> not(prose)\n\n- A list of things that are long enough to be kept if they were not in a "
        "list of things, which they are.\n\nArgs:\n    name: the name of the thing that is described here at length, "
        "and at much greater length.\n\nToo short."
    )
    assert prose.paragraphs(text) == [
        "The first paragraph says in many words what the second one says with less, and it is long enough to be kept."
    ]


@given(st.text(min_size=1))
def test_the_split_of_a_document_depends_on_its_id_alone(name):
    assert prose.split_of(name) == prose.split_of(name) in ("calibration", "evaluation")


def test_sentences_are_the_prose_cut_up():
    assert " ".join(prose.sentences("evaluation")) == " ".join(
        row["text"].replace("\n\n", " ") for row in prose.rows("evaluation")
    )


def test_docstrings_are_those_that_python_shows():
    import argparse
    import heapq
    import textwrap

    by_name = {entry.name: entry for entry in docstrings()}
    assert by_name["textwrap"].text == textwrap.__doc__.strip()
    assert by_name["heapq.merge"].text.split() == heapq.merge.__doc__.split()
    assert by_name["argparse.ArgumentParser"].kind == "class"
    assert by_name["argparse.ArgumentParser"].text.split() == argparse.ArgumentParser.__doc__.split()
    assert by_name["asyncio.streams.StreamReader.readline"].module == "asyncio.streams"
    assert not any(entry.module.startswith(("test.", "idlelib", "_")) for entry in docstrings())
    assert "with" in topics()


def test_novelty_tells_what_was_said_before():
    novelty = Novelty(share=0.5, length=3)
    assert novelty.is_new("one two three four five six")
    assert not novelty.is_new("One, two, three, four, five; six!")
    assert not novelty.is_new("one two three four five seven")
    assert novelty.is_new("one two three eight nine ten")
    assert novelty.is_new("short")
    assert not novelty.is_new("Short.")
