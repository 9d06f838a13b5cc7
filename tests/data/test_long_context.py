"""Samples of exact length: every family, at any length, has one right answer that its context gives."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.data import real_passages
from sparsebench.data.embedded import exact_length, words
from sparsebench.errors import InputError, UnknownNameError

ENCODERS = {
    "words": str.split,
    "pieces": lambda text: re.findall(r"\w{1,4}|\s+|[^\w\s]", text),
    "special": lambda text: ["<s>", *re.findall(r" ?\w+| ?[^\w\s]|\s+", text), "</s>"],
}
FAMILIES = [
    ("needles", {"kind": "multi-query"}), ("tracking", {}), ("tracking", {"chains": 3, "hops": 3}),
    ("counted_words", {"kind": "common"}), ("counted_words", {"kind": "frequent"}), ("joint_recall", {}), ("passkey", {}),
    ("stories", {"kind": "retrieval"}), ("stories", {"kind": "multi-hop"}), ("two_questions", {}), ("passages", {}),
]  # fmt: skip


def made(family, encode, **options):
    return import_module(f"sparsebench.data.embedded.{family}").rows(encode, **options)


@settings(max_examples=80, deadline=None)
@given(
    encoder=st.sampled_from(sorted(ENCODERS)),
    family=st.sampled_from(FAMILIES),
    length=st.integers(500, 3000),
    n=st.integers(1, 3),
    seed=st.integers(0, 1000),
    room=st.sampled_from([0, 64]),
)
def test_every_family_keeps_the_length_and_is_the_same_again(encoder, family, length, n, seed, room):
    encode = ENCODERS[encoder]
    name, options = family
    rows = made(name, encode, length=length, n=n, seed=seed, room=room, **options)
    assert len(rows) == len({row["id"] for row in rows}) == n * (2 if name == "two_questions" else 1)
    for row in rows:
        tokens = len(encode(f"{row['context']}{row['question']} {row['answer']}"))
        assert tokens == row["tokens"]
        prompt = len(encode(row["context"] + row["question"]))
        if row.get("turn") != "first":  # that one has a second question to come
            assert (0.9 if room else 0.95) * length <= (prompt if room else tokens)
        assert tokens <= length
        assert not room or prompt <= max(0.94 * length, length - room + 1)
        assert row["answer"] == ", ".join(row["answers"])
        assert all(answer in row["context"] + row["question"] for answer in row["answers"])
    assert made(name, encode, length=length, n=n, seed=seed, room=room, **options) == rows
    other = made(name, encode, length=length, n=n, seed=seed + 1, room=room, **options)
    assert [row["answer"] for row in other] != [row["answer"] for row in rows] or name == "passages"


def test_needles_keep_room_for_what_is_generated():
    encode = ENCODERS["pieces"]
    for kind in ("single", "multi-value"):
        (row,) = made("needles", encode, length=8192, n=1, room=64, kind=kind)
        assert 0.99 * 8128 <= len(encode(row["context"] + row["question"])) <= 8128 < row["tokens"]


def test_chains_are_followed_by_hand():
    for row in made("tracking", str.split, length=900, n=6, chains=3, hops=3):
        (value,) = re.findall(r"have the value (\d+)", row["question"])
        values: dict[str, str] = {}
        for name, given_ in re.findall(r"VAR (\w+) = ((?:VAR )?\w+)\.", row["context"]):
            # In the order of the text: nothing is assigned before what it is assigned from.
            values[name] = values[given_.removeprefix("VAR ")] if given_.startswith("VAR") else given_
        assert len(values) == 12
        assert len(set(values.values())) == 3
        assert {name for name, found in values.items() if found == value} == set(row["answers"])


@pytest.mark.parametrize("length", [300, 1000, 6000])
def test_counted_words_are_the_most_frequent(length):
    for kind, listed in (("common", r"\d+\. (\w+)"), ("frequent", r"\w+")):
        for row in made("counted_words", str.split, length=length, n=3, kind=kind):
            counts = Counter(re.findall(listed, row["context"].split("\n\n", 1)[1])).most_common(4)
            assert {word for word, _ in counts[:3]} == set(row["answers"])
            assert counts[2][1] > counts[3][1]
            assert kind == "frequent" or counts[2][1] >= 2 * counts[3][1]


def test_joint_recall_needs_place_and_key():
    for row in made("joint_recall", str.split, length=1500, n=5, keys=4):
        lines = re.findall(r"In the ([\w ]+), the code of (\w+) is (\d+)\.", row["context"])
        place, key = re.search(r"In the ([\w ]+), the code of (\w+) is", row["question"]).groups()
        assert [code for p, k, code in lines if (p, k) == (place, key)] == row["answers"]
        assert len({code for _, k, code in lines if k == key}) > 1
        assert len({code for p, _, code in lines if p == place}) > 1
        assert len({(p, k) for p, k, _ in lines}) == len({code for *_, code in lines}) == len(lines)


def test_the_pass_key_has_distractors_of_its_form():
    rows = made("passkey", str.split, length=1200, n=10, distractors=4)
    for row in rows:
        numbers = re.findall(r"\d{5}", row["context"])
        assert set(numbers) == {row["answer"], *row["distractors"]}
        assert len(row["distractors"]) == 4
        assert row["context"].count(row["answer"]) == 2
    found = sorted(row["context"].index("The pass key is") / len(row["context"]) for row in rows)
    assert all(abs(depth - (place + 0.5) / 10) < 0.1 for place, depth in enumerate(found))


def chapters(context):
    parts = re.split(r"\n\nChapter \d+\. ", context)[1:]
    return [
        [
            (re.findall(form, part) or [None])[0]
            for form in (r"(?:travelled to|went to|came to) (\w+)", r"bought the (\w+ \w+)")
        ]
        for part in parts
    ]


def test_stories_answer_from_the_chapter_and_from_the_one_before():
    for row in made("stories", str.split, length=1500, n=6, kind="retrieval"):
        number = int(re.search(r"In chapter (\d+)", row["question"]).group(1))
        assert chapters(row["context"])[number - 1][0] == row["answer"]
    for row in made("stories", str.split, length=1500, n=6, kind="multi-hop"):
        bought = [thing for _, thing in chapters(row["context"]) if thing]
        assert len(set(bought)) == len(bought)
        before = re.search(r"before the (\w+ \w+) was", row["question"]).group(1)
        assert bought[bought.index(before) - 1] == row["answer"]


def test_both_turns_read_one_context_and_the_second_asks_for_something_else():
    rows = made("two_questions", str.split, length=800, n=3)
    for first, second in zip(rows[:3], rows[3:], strict=True):
        assert (first["turn"], second["turn"]) == ("first", "second")
        assert first["cluster"] == second["cluster"]
        assert first["context"] == ""  # nothing but the end of the prompt ends its prefill
        assert first["question"] == second["context"]
        assert second["context"].startswith(second["document"])
        assert first["answer"] != second["answer"]
        assert second["question"].startswith(f" {first['answer']}.")
        for row, asked in ((first, first["question"]), (second, second["question"])):
            thing = re.findall(r"The access code of the (\w+ \w+) is$", asked)[0]
            assert f"The access code of the {thing} is {row['answer']}." in row["document"]


def test_passages_hold_the_fact_once_and_others_of_its_kind():
    for row in made("passages", str.split, length=1000, n=8):
        parts = re.split(r"\n\nPassage \d+\. ", row["context"])[1:]
        assert row["answer"] in parts[row["passage"] - 1]
        company = parts[row["passage"] - 1].partition("\n")[0]
        assert row["question"].count(company) == 2
        assert sum(company in part for part in parts) == 1
        assert len(parts) > 5


def test_real_passages_stand_among_others():
    items = [
        {"query": f"Passage: text {k} {'word ' * (20 + k)}end.\nQuestion: is it {k}?", "choices": ["no", "yes"], "gold": k % 2}
        for k in range(30)
    ]  # fmt: skip
    rows = real_passages.rows(items, str.split, length=500, n=10)
    assert len({row["question"] for row in rows}) == 10
    for row in rows:
        number = int(re.search(r"is it (\d+)\?", row["question"]).group(1))
        assert f"text {number} " in row["context"]
        assert row["choices"][row["gold"]] == row["answer"] == ("no", "yes")[number % 2]
        assert 0.9 * 500 <= row["tokens"] <= 500
    with pytest.raises(InputError, match="passages are short enough"):
        real_passages.rows(items, str.split, length=30, n=3)


def test_coined_words_and_things_do_not_depend_on_how_many_are_taken():
    from itertools import islice
    from random import Random

    for names in (words.coined, words.things, exact_length.codes):
        few, many = (list(islice(names(Random(1)), count)) for count in (10, 100))
        assert many[:10] == few
        assert len(set(many)) == 100


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("tracking", {"hops": 0}, "0 hops"), ("passkey", {"distractors": 9}, "9 distractors"),
        ("joint_recall", {"keys": 1}, "1 keys"), ("stories", {"n": 0}, "0 samples"), ("counted_words", {"n": 0}, "0 samples"),
        ("stories", {"length": 40}, "cannot be made"),
    ],
)  # fmt: skip
def test_what_cannot_be_made(family, options, message):
    with pytest.raises(InputError, match=message):
        made(family, str.split, **{"length": 800, "n": 1, **options})
    if family in ("stories", "counted_words"):
        with pytest.raises(UnknownNameError):
            made(family, str.split, length=800, n=1, kind="other")
