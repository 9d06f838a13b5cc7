"""Scorers of free text that need no judge: what can be said of a summary or an answer by counting words.

They see whether a text is there, repeats itself, and keeps to its source; they do not see whether it is good.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sparsebench.data.answers import normalise

Row = Mapping[str, Any]
LEAD = 3
"""Sentences of a story's beginning that stand for a reference summary, as is usual for news."""


def final_number(row: Row, response: str) -> dict[str, float]:
    """Whether the last number of the first worked answer is the target's: GSM8K's exact match.

    Args:
        row: Has `target`, which ends with `#### number`.
        response: The generated text; what follows a second question is not its answer.
    """
    wanted = _numbers(str(row["target"]).rpartition("####")[2])
    found = _numbers(response.partition("Question:")[0])
    return {"correct": float(bool(wanted and found) and found[-1] == wanted[-1]), "empty": float(not found)}


def summary(row: Row, response: str) -> dict[str, float]:
    """ROUGE-2 recall of the story's first sentences, and how far the summary keeps to the story.

    `supported` is the share of the summary's bigrams that stand in the story; an empty summary has none, and scores 0
    in both.

    Args:
        row: Has `story`.
        response: The generated text.
    """
    story, words = str(row["story"]), normalise(response).split()
    lead = " ".join(re.split(r"(?<=[.!?])\s*(?=[A-Z\"'])", story)[:LEAD])
    reference, own = _bigrams(normalise(lead).split()), _bigrams(words)
    known = _bigrams(normalise(story).split())
    return {
        "rouge_lead": sum((reference & own).values()) / max(1, sum(reference.values())),
        "supported": sum(n for pair, n in own.items() if pair in known) / max(1, sum(own.values())),
        **degeneration(words),
    }


def free_text(row: Row, response: str) -> dict[str, float]:
    """Only whether the text degenerates; see `degeneration`."""
    return degeneration(normalise(response).split())


def degeneration(words: Sequence[str]) -> dict[str, float]:
    """Share of distinct bigrams, and whether the text is empty or repeats itself.

    A text without two words has no distinct bigram. `looping`: its last eight words stand in it three times or more.
    """
    pairs = _bigrams(words)
    ending = list(words[-8:])
    times = sum(list(words[i : i + 8]) == ending for i in range(len(words) - 7)) if len(words) >= 8 else 0
    return {
        "distinct": len(pairs) / max(1, sum(pairs.values())),
        "looping": float(times >= 3),
        "empty": float(not words),
    }


def _bigrams(words: Sequence[str]) -> Counter[tuple[str, str]]:
    return Counter(itertools.pairwise(words))


def _numbers(text: str) -> list[float]:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return [float(number.replace(",", "")) for number in found]
