"""Questions on real passages, each passage among others of the same collection: reading comprehension at a length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.passages import INTRODUCTION
from sparsebench.errors import InputError


def rows(
    items: Sequence[dict[str, Any]], encode: Encode, *, length: int, n: int, seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length.

    Args:
        items: `query` (`Passage: ...`, a line feed, `Question: ...`), `choices` and `gold`.
        encode: Tokens of a text.
        length: Most tokens of context, question and answer together. Items whose own passage and question have more
            than half of it are left out, so that there is something to leave aside.
        n: Number of samples; the right passage takes n evenly spaced places.
        seed: Another seed gives other samples.
        room: Tokens to keep free.

    Returns:
        Rows as `exact_length.Sample.row` has them, with `choices` and `gold`.

    Raises:
        InputError: There are too few items.
    """
    draw = Random(f"real passages {seed}")
    order = draw.sample(range(len(items)), len(items))
    parsed = [(*_parted(str(items[index]["query"])), items[index]) for index in order]
    asked = [each for each in parsed if len(encode(each[0] + each[1])) <= length // 2][:n]
    if len(asked) < n:
        raise InputError(f"{len(asked)} passages are short enough, of {n}", "ask for fewer, or for a longer prompt")
    passages = [passage for passage, _, _ in parsed]
    makes = [
        partial(_sample, each, passages, seed, number, depth)
        for number, (each, depth) in enumerate(zip(asked, depths("real-passages depths", n, seed), strict=True))
    ]
    return exact_rows(f"real-passages/{length}/{seed}", encode, makes, length=length, room=room)


def _parted(query: str) -> tuple[str, str]:
    passage, _, question = query.removeprefix("Passage: ").rpartition("\nQuestion: ")
    return passage, question


def _sample(
    asked: tuple[str, str, dict[str, Any]], passages: Sequence[str], seed: int, number: int, depth: float, words: int
) -> Sample:
    passage, question, item = asked
    draw = Random(f"real passages {seed} {number}")
    chosen: list[str] = []
    while words > 0:
        other = passages[draw.randrange(len(passages))]
        if other != passage and other not in chosen:
            chosen.append(" ".join(other.split()[:words]))
            words -= len(other.split())
    chosen.insert(int(depth * (len(chosen) + 1)), passage)
    text = "".join(f"\n\nPassage {place}. {each}" for place, each in enumerate(chosen, 1))
    choices = [str(choice) for choice in item["choices"]]
    gold = int(item["gold"])
    facts = {"choices": choices, "gold": gold}
    return Sample(INTRODUCTION + text, f"\n\nQuestion: {question}\nAnswer:", (choices[gold],), facts)
