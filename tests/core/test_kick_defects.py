"""What went wrong in LLM-KICK's scripts must not go wrong here (https://github.com/VITA-Group/llm-kick)."""

from __future__ import annotations

import json
import math
from typing import Any

import models
import pytest
import torch
import yaml

from sparsebench.engine.generation import Prompt, Sampling, generate
from sparsebench.tasks import registry
from sparsebench.tasks.scorers import choice, contains_answers, short_answer

QUESTIONS = ["Who fell down?", "Where is the cat?", "What did Tom eat?", "Who is happy?", "Where did they go?"]


@pytest.fixture
def task(tmp_path):
    """A generation task over rows."""

    def make(rows: list[dict[str, Any]], **changes: Any):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole = {
            "task": "t", "version": 1, "title": "t", "family": "knowledge", "type": "generate", "scorer": "short-answer",
            "metrics": [{"name": "accuracy", "column": "correct", "headline": True}],
            "data": [{"path": str(tmp_path / "rows.jsonl")}], "generation": {"until": [], "max_gen_toks": 6},
        }  # fmt: skip
        (tmp_path / "t.yaml").write_text(yaml.safe_dump({**whole, **changes}))
        return registry.get(str(tmp_path / "t.yaml"))

    return make


@pytest.fixture
def system():
    return models.tiny_system()


@pytest.fixture
def silent():
    """A collapsed model: it ends every text before the first word."""
    system = models.tiny_system()
    assert system.packed

    def end(module: torch.nn.Module, args: Any, out: Any) -> Any:
        out.logits.zero_()
        out.logits[..., system.tokenizer.eos_token_id] = 30.0
        return out

    system.model.register_forward_hook(end)
    return system


def rows_of(targets: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "prompt": question, "target": target, "answers": [target]}
        for i, (question, target) in enumerate(zip(QUESTIONS, targets, strict=True))
    ]


def test_a_question_that_names_the_answer_is_not_its_answer(task, system) -> None:
    """Prompt and continuation were decoded together, and an alias in the question counted."""
    for scorer, column in (("short-answer", "correct"), ("contains-answers", "recall")):
        metrics = [{"name": "accuracy", "column": column, "headline": True}]
        bound = task(rows_of(["Who", "cat", "Tom", "happy", "they"]), scorer=scorer, metrics=metrics)
        samples = bound.bind(system.tokenizer).evaluate(system).samples
        assert samples[column].tolist() == [0.0] * 5
        assert not any(question in response for question, response in zip(QUESTIONS, samples["response"], strict=True))


def test_as_many_items_are_scored_as_are_divided_by(task, system) -> None:
    """One item more was run than was divided by: a perfect model had an accuracy above 1."""
    first = task(rows_of(["x"] * 5)).bind(system.tokenizer).evaluate(system).samples
    answers = dict(zip(first["sample"], first["response"], strict=True))
    rows = rows_of([answers[str(i)] for i in range(5)])
    for limit in (None, 3):
        bound = task(
            rows, metrics=[{"name": "recall", "column": "recall", "headline": True}], scorer="contains-answers"
        )
        bound = bound.bind(system.tokenizer, limit)
        result = bound.evaluate(system)
        assert len(result.samples) == bound.workload.samples == (limit or 5)
        assert bound.metrics[0].value(result.samples) == result.samples["recall"].mean() <= 1


@pytest.mark.parametrize("alias", ["United States", "USA", "America"])
def test_every_alias_counts(alias: str) -> None:
    """Of the accepted answers only those of the first parse counted."""
    row = {"aliases": ["United States", "USA", "America"], "target": "United States"}
    assert short_answer(row, f" {alias}.\n")["correct"] == 1.0


@pytest.mark.parametrize("response", ["", "\n", " . ", "the", "U", "state"])
def test_part_of_an_answer_is_no_answer(response: str) -> None:
    """A prediction counted if it was part of a gold answer; the empty one is part of all."""
    assert short_answer({"aliases": ["United States", "USA"], "target": "x"}, response)["correct"] == 0.0
    assert contains_answers({"answers": ["United States", "12"]}, response) == {"recall": 0.0, "complete": 0.0}


@pytest.mark.parametrize(("scorer", "column"), [("short-answer", "correct"), ("contains-answers", "complete")])
def test_a_collapsed_model_that_answers_nothing_scores_0(task, silent, scorer: str, column: str) -> None:
    """A sparse model that ended every text at once scored 100 %."""
    metrics = [{"name": "accuracy", "column": column, "headline": True}]
    bound = task(rows_of(["Tom", "Here", "An apple", "Lily", "Home"]), scorer=scorer, metrics=metrics)
    bound = bound.bind(silent.tokenizer)
    samples = bound.evaluate(silent).samples
    assert samples["response"].tolist() == [""] * 5
    assert bound.metrics[0].value(samples) == 0.0


def test_a_model_that_says_the_same_of_all_choices_knows_none() -> None:
    for gold in (1, 2, 3):
        scores = choice({"gold": gold, "choices": ["a", "b", "c", "d"]}, [-2.0] * 4)
        assert scores["correct"] == 0.0
        assert scores["gold_logprob"] == pytest.approx(-math.log(4))


def test_sampled_texts_have_a_seed(system) -> None:
    """Texts were sampled without one, so that no score could be had again."""

    def sampled(seed: int) -> list[str]:
        options = Sampling(temperature=0.7, seed=seed)
        return generate(system, [Prompt([5, 6, 7, n], 4, (), 12, frozenset(), options) for n in range(4)])

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
