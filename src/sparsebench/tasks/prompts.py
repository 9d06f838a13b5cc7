"""Tasks with prompts: generation and multiple choice, through the engine's lm-eval interface."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.identity import seed_of
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.builders import build_rows
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.scorers import CHOICE, READ, READ_BEYOND, TEXT, choice_scorer, columns_of, text_scorer


def even_choice(rows: list[Any], limit: int | None, seed: int = 0) -> list[Any]:
    """`limit` rows evenly spread over all; the same ones for every system. A seed begins elsewhere."""
    if limit is None or limit >= len(rows):
        return rows
    first = seed_of("limit", seed) % len(rows) if seed else 0
    return [rows[(i * len(rows) + first) // limit] for i in range(limit)]


def rendered(
    definition: TaskDefinition, rows: Sequence[dict[str, Any]], limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows with `prompt`, `context`, `target`, `cluster` and `sample` rendered by Jinja in a sandbox, within bounds.

    At most `limit` of them, evenly spread; a row keeps the number that it has among all.

    Raises:
        InputError: A template is malformed, names a field that a row has not, tries what the sandbox forbids, or goes
            on for too long.
    """
    from sparsebench.tasks.templates import BoundedEnvironment

    environment = BoundedEnvironment()
    template = definition.template
    finished: list[dict[str, Any]] = []
    chosen = even_choice(list(enumerate(rows)), limit, definition.seed)
    try:
        compiled = {
            n: environment.template(getattr(template, n)) for n in ("prompt", "context", "target", "cluster", "id")
        }
        for number, row in chosen:
            fields = _with_target(row)
            values = {name: environment.text(each, fields) for name, each in compiled.items()}
            sample = values.pop("id") or str(row.get("id", number))
            finished.append({**row, **values, "sample": sample, "cluster": values["cluster"] or sample})
    except Exception as error:  # whatever the expressions of a template raise
        number, row = chosen[len(finished)] if chosen else (0, {})
        there = f"row {number} has {', '.join(map(str, row))}" if row else None
        raise InputError(f"task {definition.task}: template: {error}", there) from None
    names = [row["sample"] for row in finished]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"task {definition.task}: the sample id {twice!r} stands twice")
    return finished


def _with_target(row: dict[str, Any]) -> dict[str, Any]:
    """The row; the target of a choice is the right one, where it has no text of its own."""
    if "target" in row or "choices" not in row or "gold" not in row:
        return row
    return {**row, "target": str(row["choices"][int(row["gold"])])}


def _distinct_characters(prompts: list[str]) -> int:
    """Characters of all prompts, common beginnings counted once."""
    ordered = sorted(prompts)
    shared = sum(
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), len(x)) for x, y in pairwise(ordered)
    )
    return sum(map(len, ordered)) - shared


class PromptTask(DefinedTask):
    """A generation or multiple-choice task from a definition."""

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundPromptTask:
        """Rows with their prompts rendered."""
        return BoundPromptTask(self.definition, tokenizer, limit)


class BoundPromptTask(BoundTask):
    """A prompt task with its rows."""

    def __init__(self, definition: TaskDefinition, tokenizer: Any, limit: int | None) -> None:
        built = build_rows(definition.build, definition.data, definition.options, tokenizer, definition.seed)
        self.rows = rendered(definition, built.rows, limit)
        if not self.rows:
            raise InputError(f"task {definition.task}: {built.source} holds no rows")
        self.definition = definition
        self.metrics = list(definition.metrics)
        self._check_rows()
        self.family = definition.family
        self.title = definition.title
        self.protocol = "context" if definition.template.context else "prompt"
        hashed = content_hash([_evaluated(row, definition.scorer, made=not definition.data) for row in self.rows])
        self.data = [definition.fact(built.source, built.sha256)]
        self.spec = definition.spec(hashed, limit)
        characters = _distinct_characters([str(row["prompt"]) for row in self.rows])
        generated = definition.generation.max_gen_toks * len(self.rows) if definition.type == "generate" else 0
        self.workload = Workload(
            len(self.rows), characters // 4, generated, len(self.rows), characters // 4 // max(1, len(self.rows))
        )

    def _check_rows(self) -> None:
        """Whether the scorer reads every row and gives the columns of every metric."""
        definition = self.definition
        if (definition.scorer in CHOICE) is not (definition.type == "choice"):
            raise UnknownNameError(
                f"scorer of a {definition.type} task",
                definition.scorer,
                TEXT if definition.type == "generate" else CHOICE,
            )
        for row in self.rows:
            try:
                columns = columns_of(definition.scorer, row)
            except InputError as error:
                raise InputError(
                    f"task {definition.task}: sample {row['sample']!r}: {error.message}", error.hint
                ) from None
        for metric in self.metrics:
            if metric.column not in columns:
                raise UnknownNameError(
                    f"column of scorer {definition.scorer!r} in task {definition.task}", metric.column, columns
                )

    def evaluate(self, system: Any) -> TaskResult:
        """Generate or score, then apply the scorer to each row."""
        from sparsebench.engine.lm import SparseLM

        lm = SparseLM.of(system, "context" if self.definition.template.context else None)
        length = self.definition.options.get("length")
        if isinstance(length, int) and length > lm.max_length:
            raise InputError(
                f"task {self.definition.task} is made of {length:,} tokens, of which {type(system.model).__name__} "
                f"reads {lm.max_length:,}",
                "what the answer rests on could be cut away; choose a shorter form of the task, or another model",
            )
        result = self._generate(lm) if self.definition.type == "generate" else self._choose(lm)
        if lm.truncated:
            result.facts["truncated"] = lm.truncated
        return result

    def _generate(self, lm: Any) -> TaskResult:
        from lm_eval.api.instance import Instance

        options = self.definition.generation.options()
        requests = [
            Instance("generate_until", row, (row["prompt"], dict(options)), number, ("", number, 1))
            for number, row in enumerate(self.rows)
        ]
        scorer = text_scorer(self.definition.scorer)
        responses = lm.generate_until(requests)
        scores = [scorer(row, response) for row, response in zip(self.rows, responses, strict=True)]
        return self._result(responses, scores)

    def _choose(self, lm: Any) -> TaskResult:
        from lm_eval.api.instance import Instance

        requests, owners = [], []
        for number, row in enumerate(self.rows):
            for text in row["choices"]:
                requests.append(Instance("loglikelihood", row, (row["prompt"], f" {text}"), number, ("", number, 1)))
                owners.append(number)
        logprobs: list[list[float]] = [[] for _ in self.rows]
        for owner, (value, _) in zip(owners, lm.loglikelihood(requests), strict=True):
            logprobs[owner].append(value)
        scorer = choice_scorer(self.definition.scorer)
        scores = [scorer(row, values) for row, values in zip(self.rows, logprobs, strict=True)]
        return self._result([json.dumps([round(v, 5) for v in values]) for values in logprobs], scores)

    def _result(self, responses: list[str], scores: list[dict[str, float]]) -> TaskResult:
        import pandas as pd

        wanted = {metric.column for metric in self.metrics}
        frame = pd.DataFrame(
            {
                "sample": [row["sample"] for row in self.rows],
                "cluster": [row["cluster"] for row in self.rows],
                **{name: [score[name] for score in scores] for name in scores[0] if name in wanted},
                "response": responses,
                "target": [str(row["target"]) for row in self.rows],
            }
        )
        return TaskResult(frame)


def _evaluated(row: dict[str, Any], scorer: str, made: bool) -> dict[str, Any]:
    """What of a row changes results.

    Fields that one scorer alone reads are left out where they follow from the rest: in rows that were made from the
    task's definition and nothing else, and where they are the context once more.
    """
    names = {"sample", "cluster", "prompt", "context"} | READ
    beyond = () if made else READ_BEYOND.get(scorer, ())
    names |= {name for name in beyond if row.get(name) != row["context"]}
    return {name: row[name] for name in names if name in row}
