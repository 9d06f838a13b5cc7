"""Questions with a known answer, for measuring what a model recalls: short completion prompts over seven relations.

Each relation's facts come from `relations`, the best known first. Five of the best known become worked examples and are
never asked. The rows of one relation share those examples, so that a prompt is a shared beginning and one short line.

*Answer priors.* A model that has forgotten a country can still say "English". So each row says whether its answer is
the one that such a model would give: a row is `prior` if its answer is the commonest among the relation's *other*
questions (at least two of them; ties by alphabet). A row's own answer plays no part in the choice of the answer that
it is compared with. Accuracy over rows that are not `prior` is the headline; where answers hardly repeat none is.

*Clusters.* Rows with the same relation and the same answer stand or fall together; `cluster` names that pair.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from sparsebench.data.answers import normalise
from sparsebench.data.embedded.geography import fold
from sparsebench.data.embedded.relations import RELATIONS, Fact, Relation

VERSION = "1"

#: Worked examples of each relation, and how many of the best known facts they are drawn from.
SHOTS = 5
_SHOT_POOL = 40

#: Choices of each question, the right one among them, and how many answers its distractors are drawn from.
CHOICES = 4
_NEIGHBOURS = 24


def rows() -> list[dict[str, Any]]:
    """All questions, relation after relation, the best known things first.

    Returns:
        Rows with

        | key | type | meaning |
        | --- | --- | --- |
        | `id` | str | unique: `capital/japan` |
        | `relation` | str | the template's name |
        | `cluster` | str | unit of resampling: relation and answer |
        | `shots` | str | the relation's worked examples, one a line, without a line end after the last |
        | `question` | str | the line to complete; the answer follows after a space |
        | `answer`, `aliases` | str, list | the right answer, and others that are as right (see `answers.is_right`) |
        | `choices`, `gold` | list, int | four answers of the same relation, and the place of the right one |
        | `prior` | bool | the answer is the commonest of the relation's other questions (see above) |

    Raises:
        MissingError: A package with the facts is neither installed nor to be had.
    """
    return [dict(row) for relation in RELATIONS for row in _relation_rows(relation)]


@cache
def _relation_rows(relation: Relation) -> tuple[dict[str, Any], ...]:
    facts = _distinguishable(list(relation.facts()))
    shots = _shots(relation, facts)
    asked = [fact for fact in facts if fact not in shots][: relation.limit]
    ids = [_row_id(relation, fact) for fact in asked]
    priors = _priors([fact.answer for fact in asked])
    text = "\n".join(f"{relation.template.format(shot.subject)} {shot.answer}." for shot in shots)
    return tuple(
        {
            "id": row_id,
            "relation": relation.name,
            "cluster": f"{relation.name}/{_slug(fact.answer)}",
            "shots": text,
            "question": relation.template.format(fact.subject),
            "answer": fact.answer,
            "aliases": list(fact.aliases),
            **_choices(row_id, fact, facts),
            "prior": prior,
        }
        for row_id, fact, prior in zip(ids, asked, priors, strict=True)
    )


def _distinguishable(facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose answer does not begin another answer of the relation (Guinea, Guinea-Bissau), once each."""
    answers = {normalise(fact.answer) for fact in facts}
    beginnings = {" ".join(words[:count]) for words in map(str.split, answers) for count in range(1, len(words))}
    by_subject = {fold(fact.subject): fact for fact in reversed(facts)}
    return [
        fact for fact in facts if by_subject[fold(fact.subject)] is fact and normalise(fact.answer) not in beginnings
    ]


def _shots(relation: Relation, facts: Sequence[Fact]) -> list[Fact]:
    """Examples with different answers, drawn by hash from the best known facts."""
    drawn: dict[str, Fact] = {}
    for fact in sorted(facts[:_SHOT_POOL], key=lambda fact: _hash("shot", _row_id(relation, fact))):
        drawn.setdefault(fact.answer, fact)
    return list(drawn.values())[:SHOTS]


def _priors(answers: Sequence[str]) -> list[bool]:
    """Whether each answer is the commonest among all the others."""
    counts = Counter(answers)
    return [answer == _commonest(counts - Counter((answer,))) for answer in answers]


def _commonest(counts: Counter[str]) -> str | None:
    """The commonest answer if it occurs twice; the first by alphabet of equally common ones."""
    if not counts or max(counts.values()) < 2:
        return None
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _choices(row_id: str, fact: Fact, facts: Sequence[Fact]) -> dict[str, Any]:
    """The right answer among distractors from the relation's answers that are about as well known, in a drawn order."""
    right = {normalise(name) for name in (fact.answer, *fact.aliases)}
    known = list(dict.fromkeys(other.answer for other in facts))
    place = known.index(fact.answer)
    others = [answer for answer in known if normalise(answer) not in right]
    near = sorted(others, key=lambda answer: abs(known.index(answer) - place))[:_NEIGHBOURS]
    drawn = sorted(near, key=lambda answer: _hash("distractor", row_id, answer))[: CHOICES - 1]
    choices = sorted([fact.answer, *drawn], key=lambda answer: _hash("order", row_id, answer))
    return {"choices": choices, "gold": choices.index(fact.answer)}


def _row_id(relation: Relation, fact: Fact) -> str:
    return f"{relation.name}/{_slug(fact.subject)}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", fold(name)).strip("-")


def _hash(*parts: str) -> int:
    """A number drawn from names; the same with every version of Python."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])
