"""What went wrong in LLM-KICK's scripts must not go wrong here (https://github.com/VITA-Group/llm-kick)."""

from __future__ import annotations

import ast
import json
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import models
import pandas as pd
import pytest
import torch
import yaml

from sparsebench.engine.generation import Prompt, Sampling, generate
from sparsebench.errors import InputError, MissingError
from sparsebench.tasks import judge, registry
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


# -- a judge -----------------------------------------------------------------------------------------------------------


def prefers(word: str) -> judge.Ask:
    """A judge that scores texts by whether a word is in them, whatever the order."""

    def ask(prompt: str) -> str:
        first, second = prompt.split("[Answer A]")[1].split("[Answer B]")
        second = second.split("Explain briefly")[0]
        return f"I see.\nScores: A={9 if word in first else 4} B={9 if word in second else 4}"

    return ask


def test_the_order_of_two_answers_does_not_decide() -> None:
    """The reference always stood first, and judges prefer a place."""
    first_always: judge.Ask = lambda prompt: "Scores: A=9 B=3"  # noqa: E731
    found = judge.preference(first_always, "Say it.", "ours", "theirs")
    assert found == {"preference": 0.0, "inconsistent": 1.0, "unreadable": 0.0}
    assert judge.preference(prefers("good"), "Say it.", "good", "bad")["preference"] == 1.0
    assert judge.preference(prefers("good"), "Say it.", "bad", "good")["preference"] == -1.0
    assert judge.preference(prefers("none"), "Say it.", "bad", "good")["preference"] == 0.0


@pytest.mark.parametrize(
    "answer", ["", "A is better.", "Scores: A=9", "Scores: A=0 B=5", "Scores: A=11 B=5", "Scores: A=x B=y", "[[A]]"]
)
def test_judgements_that_cannot_be_read_are_counted(answer: str) -> None:
    """They were dropped, after the failure itself had been taken for a score."""
    assert judge.scores(answer) is None
    found = judge.preference(lambda prompt: answer, "Say it.", "ours", "theirs")
    assert math.isnan(found["preference"]) and found["unreadable"] == 1.0
    answers = iter(["Scores: A=7 B=5", answer])
    half = judge.preference(lambda prompt: next(answers), "Say it.", "ours", "theirs")
    assert math.isnan(half["preference"]) and half["unreadable"] == 0.5


def test_the_last_line_of_scores_counts() -> None:
    assert judge.scores("I was told to write Scores: A=<score>.\nScores: A=1 B=1\n**Scores: A=7.5, B=10**") == (7.5, 10)


def test_a_collapsed_model_loses_every_comparison_without_a_judge() -> None:
    def unasked(prompt: str) -> str:
        raise AssertionError

    ours = pd.DataFrame({"sample": ["a", "b"], "response": ["", " \n"]})
    theirs = pd.DataFrame({"sample": ["b", "a"], "response": ["text", "text"]})
    found = judge.preferences(unasked, {"a": "Say a.", "b": "Say b."}, ours, theirs)
    values = {metric.name: metric.value(found) for metric in judge.METRICS}
    assert values["preference over dense"] == -1.0
    assert values["unreadable judgements"] == 0.0
    with pytest.raises(InputError, match="different samples"):
        judge.preferences(unasked, {"a": "", "b": ""}, ours[:1], theirs)
    with pytest.raises(InputError, match="no responses"):
        judge.preferences(unasked, {}, ours.drop(columns="response"), theirs)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat endpoint of this machine that scores by length, and what it was asked."""
    seen: list[dict[str, Any]] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            content = json.dumps({"choices": [{"message": {"content": "Scores: A=6 B=2"}}]})
            if body["model"] == "broken":
                content = "[]"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_greedily_and_by_key(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, seen = endpoint
    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert judge.Endpoint(url, "m", key="JUDGE_KEY").ask("Which?") == "Scores: A=6 B=2"
    assert (seen[0]["path"], seen[0]["temperature"], seen[0]["key"]) == ("/v1/chat/completions", 0, "Bearer secret")
    with pytest.raises(InputError, match="no chat completion"):
        judge.Endpoint(url, "broken").ask("Which?")
    with pytest.raises(MissingError, match="NO_SUCH_KEY"):
        judge.Endpoint(url, "m", key="NO_SUCH_KEY").ask("Which?")
    with pytest.raises(MissingError, match="does not answer"):
        judge.Endpoint("http://127.0.0.1:9/v1", "m", timeout=2).ask("Which?")
    with pytest.raises(InputError, match="http or https"):
        judge.Endpoint("file:///etc/passwd", "m")


# -- the code itself ---------------------------------------------------------------------------------------------------

SOURCES = [
    path for folder in ("src", "adapters", "reports") for path in (Path(__file__).parents[2] / folder).rglob("*.py")
]


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)


def test_no_piece_of_code_stands_in_two_places() -> None:
    """One file stood in five folders, byte by byte, and a sixth had come to differ."""
    assert SOURCES
    places: dict[str, set[str]] = defaultdict(set)
    for path in {source.resolve() for source in SOURCES}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                body = "\n".join(ast.unparse(part) for part in node.body if not _is_text(part))
                if len(body.splitlines()) >= 8:
                    places[body].add(f"{path.name}:{node.name}")
    twice = {tuple(sorted(where)) for where in places.values() if len(where) > 1}
    assert not twice


def test_no_path_of_one_machine_is_in_the_code() -> None:
    """Data was read from a folder of the authors' own machine."""
    own = re.compile(r"""["'](/(?:data|home|Users|mnt|root|work|scratch)\d*/|[A-Z]:\\\\)""")
    found = Counter(path.name for path in SOURCES if own.search(path.read_text(encoding="utf-8")))
    assert not found
