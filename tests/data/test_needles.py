import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.data.embedded import needles, prose
from sparsebench.errors import InputError, UnknownNameError

#: Tokenizers of very different kinds, one with special tokens.
ENCODERS = {
    "words": str.split,
    "pieces": lambda text: re.findall(r"\w{1,4}|\s+|[^\w\s]", text),
    "bytes": lambda text: list(text.encode()),
    "special": lambda text: ["<s>", *re.findall(r" ?\w+| ?[^\w\s]|\s+", text), "</s>"],
}


@settings(max_examples=60, deadline=None)
@given(
    encoder=st.sampled_from(sorted(ENCODERS)),
    kind=st.sampled_from(sorted(needles.KINDS)),
    length=st.integers(600, 4000),
    n=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_samples_are_what_they_should_be(encoder, kind, length, n, seed):
    encode = ENCODERS[encoder]
    rows = needles.rows(encode, length=length, n=n, kind=kind, seed=seed)
    hidden, things, asked = needles.KINDS[kind]
    assert len(rows) == len({row["id"] for row in rows}) == n
    for row in rows:
        whole = f"{row['context']}{row['question']} {row['answer']}"
        assert len(encode(whole)) == row["tokens"]
        assert 0.95 * length <= row["tokens"] <= length
        assert len(row["needles"]) == hidden
        for needle in row["needles"]:
            assert row["context"].count(needle) == 1
        codes = re.findall(r"\d{5,}", row["context"])
        assert len(codes) == len(set(codes)) == hidden
        assert len(row["answers"]) == hidden // things * asked
        assert set(row["answers"]) <= set(codes)
        for answer in row["answers"]:
            (needle,) = (needle for needle in row["needles"] if needle.endswith(f"is {answer}."))
            thing = re.search(r"of the (\w+ \w+) is", needle).group(1)
            assert thing in row["question"]
        assert row["answer"] == ", ".join(row["answers"])
        assert 0 <= row["depth"] <= 1
    assert needles.rows(encode, length=length, n=n, kind=kind, seed=seed) == rows


def test_lengths_are_pairs_and_seeds_are_not():
    encode = ENCODERS["pieces"]
    short, long, other = (
        needles.rows(encode, length=length, n=5, seed=seed) for length, seed in ((700, 0), (2000, 0), (2000, 1))
    )
    assert [row["needles"] for row in short] == [row["needles"] for row in long]
    assert [row["question"] for row in short] == [row["question"] for row in long]
    assert not {row["answer"] for row in long} & {row["answer"] for row in other}
    assert len({row["answer"] for row in long}) == 5


def test_depths_are_spread_evenly():
    rows = needles.rows(ENCODERS["pieces"], length=4000, n=20)
    depths = sorted(row["depth"] for row in rows)
    assert all(abs(depth - (place + 0.5) / 20) < 0.06 for place, depth in enumerate(depths))
    assert [row["depth"] for row in rows] != depths


def test_a_prompt_longer_than_the_prose_repeats_it():
    words = sum(len(sentence.split()) for sentence in prose.sentences("evaluation"))
    (row,) = needles.rows(str.split, length=2 * words, n=1)
    assert 0.95 * 2 * words <= row["tokens"] <= 2 * words
    assert row["context"].count(row["needles"][0]) == 1


def test_the_haystack_is_evaluation_prose():
    (row,) = needles.rows(str.split, length=800, n=1)
    evaluation = " ".join(prose.sentences("evaluation"))
    middle = row["context"].split(row["needles"][0])[0].partition("\n\n")[2]
    assert len(middle) > 50
    assert middle.strip() in evaluation + " " + evaluation


def test_what_cannot_be_made():
    with pytest.raises(InputError, match="cannot be made"):
        needles.rows(str.split, length=20, n=1)
    with pytest.raises(InputError, match="0 samples"):
        needles.rows(str.split, length=800, n=0)
    with pytest.raises(UnknownNameError, match="multi-keys"):
        needles.rows(str.split, length=800, n=1, kind="multi-keys")
