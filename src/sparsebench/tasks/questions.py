"""Builders of questions from the forms in which published data sets come."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebench.errors import InputError
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    from sparsebench.data.sources import Resolved

Row = dict[str, Any]


def open_book(resolved: Resolved | None, tokenizer: Any, facts: int = 12, shots: int = 5, seed: int = 0) -> list[Row]:
    """The questions of `qa-wikidata` with the answer in front, among other facts: the open-book half of a pair.

    Every question has the id that it has there. The other facts are of other questions, as many of them as there are of
    the same template, so that the kind of answer does not give it away; facts with the same answer are left out.
    """
    from sparsebench.tasks.builders import wikidata_questions

    rows = wikidata_questions(resolved, tokenizer, shots, seed)
    by_template: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_template[row["template"]].append(row)
    found = []
    for row in rows:
        generator = np.random.default_rng(seed_of("open book", seed, row["id"]))
        others = _others(row, by_template[row["template"]], rows, facts - 1, generator)
        told = [f"{other['question']} {other['target']}." for other in (*others, row)]
        passage = "\n".join(told[place] for place in generator.permutation(len(told)))
        found.append({**row, "passage": passage, "prompt": f"{passage}\n\n{row['question']}"})
    return found


def _others(row: Row, alike: list[Row], rows: list[Row], count: int, generator: np.random.Generator) -> list[Row]:
    """Other questions with other answers, of the same template first."""
    chosen: dict[str, Row] = {}
    for pool in (alike, rows):
        for place in generator.integers(len(pool), size=4 * count):
            other = pool[int(place)]
            if len(chosen) < count and other["id"] != row["id"] and not set(other["aliases"]) & set(row["aliases"]):
                chosen[other["id"]] = other
    return list(chosen.values())


def few_shot(
    resolved: Resolved | None,
    tokenizer: Any,
    question: str,
    answer: str,
    shots: int = 5,
    seed: int = 0,
    shown: str = "",
    between: str = " ",
) -> list[Row]:
    """Rows with a question and an answer, behind worked examples that are not asked.

    Args:
        resolved: The rows.
        tokenizer: Unused.
        question: Column of the question.
        answer: Column of the answer; `aliases`, where there are any, are right too.
        shots: Worked examples in front.
        seed: What they are drawn with.
        shown: What stands before each question.
        between: What stands between a question and its answer.
    """
    rows = _rows(resolved)
    order = [int(x) for x in np.random.default_rng(seed_of("few shots", seed)).permutation(len(rows))][:shots]
    lead = "".join(f"{shown}{rows[i][question]}{between}{rows[i][answer]}\n\n" for i in order)
    return [
        {
            "id": str(number),
            "prompt": f"{lead}{shown}{row[question]}{between}".rstrip(),
            "target": str(row[answer]),
            "aliases": [str(row[answer]), *(str(alias) for alias in row.get("aliases", []))],
        }
        for number, row in enumerate(rows)
        if number not in order
    ]


def endings(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """HellaSwag as plain text: for each item its context, the place of the right ending, and four endings, by line."""
    lines = [str(row["text"]) for row in _rows(resolved)]
    if len(lines) % 6:
        raise InputError(f"{len(lines)} lines of endings", "there should be six an item")
    return [
        {
            "id": str(number),
            "prompt": lines[6 * number],
            "choices": lines[6 * number + 2 : 6 * number + 6],
            "gold": int(lines[6 * number + 1]),
            "target": lines[6 * number + 2 + int(lines[6 * number + 1])],
        }
        for number in range(len(lines) // 6)
    ]


def summaries(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """Stories to be summarised: an instruction, a blank line and the story in one text."""
    found = []
    for row in _rows(resolved):
        story = str(row["text"]).partition("\n\n")[2]
        prompt = f"{row['text']}\n\nSummary:\n"  # what begins with a blank line would end at once
        found.append({"id": str(row["question_id"]), "story": story, "prompt": prompt, "target": ""})
    return found


def _rows(resolved: Resolved | None) -> list[Row]:
    if resolved is None:
        raise InputError("this builder reads data", "give `data:` in the task")
    return resolved.rows()
