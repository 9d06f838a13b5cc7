"""Scorers: pure functions from a row and a response to the numerators of metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from sparsebench.data.answers import first_answer, is_right, normalise
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.tasks.generated_text import final_number, free_text, summary

NAN = math.nan
Row = Mapping[str, Any]


def short_answer(row: Row, response: str) -> dict[str, float]:
    """Whether the response begins with an accepted answer; see `data.answers.is_right`.

    `correct_non_prior` is the same on items whose answer is not the commonest of their template, `correct_prior` on the
    others; NaN elsewhere. An answer with no word in it is `empty`, and wrong.

    Args:
        row: Has `aliases` (or `target`), and `prior` where it is known.
        response: The generated text.
    """
    correct = float(is_right(response, listed(row.get("aliases") or row["target"])))
    prior = row.get("prior")
    return {
        "correct": correct,
        "correct_non_prior": correct if prior is False else NAN,
        "correct_prior": correct if prior is True else NAN,
        "empty": float(not normalise(first_answer(response))),
    }


def contains_answers(row: Row, response: str) -> dict[str, float]:
    """Share of the expected numbers or words that the response names, each as a whole word; `complete` if all.

    An empty response names none.
    """
    found = set(re.findall(r"\w+", normalise(response)))
    wanted = [normalise(answer) for answer in listed(row["answers"])]
    hits = sum(1.0 for answer in wanted if answer and set(answer.split()) <= found)
    return {"recall": hits / len(wanted), "complete": float(hits == len(wanted))}


def two_turns(row: Row, response: str) -> dict[str, float]:
    """`contains_answers`, and the recall of each turn by itself: `recall_first`, `recall_second`; NaN elsewhere.

    Args:
        row: Has `answers`, and `turn` (`first` or `second`).
        response: The generated text.
    """
    found = contains_answers(row, response)
    turns = {f"recall_{turn}": found["recall"] if row["turn"] == turn else NAN for turn in ("first", "second")}
    return {**found, **turns}


def listed(value: Any) -> list[str]:
    """Accepted answers: a list as it is, one text or number as a list of one.

    Raises:
        InputError: Anything else, of which no text is what was meant: null, a mapping, a list in a list.
    """
    parts = value if isinstance(value, list | tuple) else [value]
    if wrong := [part for part in parts if not isinstance(part, str | int | float)]:
        raise InputError(f"{wrong[0]!r} is no answer", "it should be a text or a number, or a list of them")
    return [str(part) for part in parts]


def options(row: Row) -> tuple[list[str], int]:
    """The choices of a row and the place of the right one, `gold`, from 0.

    Raises:
        InputError: They are not a list of two or more texts, or `gold` is no whole number that names one of them.
    """
    choices, gold = row["choices"], row["gold"]
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise InputError(f"`choices` is {choices!r}", 'it should be a list of two or more texts: ["red", "blue"]')
    texts = listed(choices)
    whole = not isinstance(gold, bool) and (isinstance(gold, int | str) or gold == int(gold))
    if not whole or not 0 <= int(gold) < len(texts):
        raise InputError(f"`gold` is {gold!r}, of {len(texts)} choices", f"it should be from 0 to {len(texts) - 1}")
    return texts, int(gold)


def choice(row: Row, logprobs: list[float]) -> dict[str, float]:
    """Multiple choice from the choices' log-probabilities.

    `correct`: the gold choice has the highest; `correct_norm`: per character, as lm-eval's acc_norm;
    `gold_logprob`: its log-probability among the choices, a continuous measure with more power. `confidence`: the
    probability of the highest among the choices, for calibration errors (`stats.calibration_error`).
    """
    choices, gold = options(row)
    per_character = [value / max(len(c), 1) for value, c in zip(logprobs, choices, strict=True)]
    top = max(logprobs)
    total = top + math.log(sum(math.exp(value - top) for value in logprobs))
    prior = row.get("prior")
    correct = float(logprobs[gold] == top and logprobs.index(top) == gold)
    return {
        "correct": correct,
        "correct_norm": float(per_character.index(max(per_character)) == gold),
        "correct_non_prior": correct if prior is False else NAN,
        "gold_logprob": logprobs[gold] - total,
        "confidence": min(1.0, math.exp(top - total)),
    }


TEXT: dict[str, Callable[[Row, str], dict[str, float]]] = {
    "short-answer": short_answer,
    "contains-answers": contains_answers,
    "two-turns": two_turns,
    "final-number": final_number,
    "summary": summary,
    "free-text": free_text,
}
CHOICE: dict[str, Callable[[Row, list[float]], dict[str, float]]] = {"choice": choice}
READ = frozenset({"target", "aliases", "answers", "choices", "gold", "prior"})
"""Fields of a row that any scorer may read."""
READ_BEYOND: dict[str, tuple[str, ...]] = {"two-turns": ("turn",), "summary": ("story",)}
"""Further fields that a scorer reads."""


def columns_of(scorer: str, row: Row) -> set[str]:
    """The columns that a scorer gives for rows such as this one.

    Raises:
        UnknownNameError: No such scorer.
        InputError: The row has not what the scorer reads.
    """
    try:
        if scorer in CHOICE:
            return set(CHOICE[scorer](row, [0.0] * len(options(row)[0])))
        return set(text_scorer(scorer)(row, ""))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"scorer {scorer!r} cannot read it: {error!r}") from None


def text_scorer(name: str) -> Callable[[Row, str], dict[str, float]]:
    """A scorer of generated text, by name."""
    if name not in TEXT:
        raise UnknownNameError("scorer of generated text", name, TEXT)
    return TEXT[name]


def choice_scorer(name: str) -> Callable[[Row, list[float]], dict[str, float]]:
    """A scorer of choices, by name."""
    if name not in CHOICE:
        raise UnknownNameError("scorer of choices", name, CHOICE)
    return CHOICE[name]
