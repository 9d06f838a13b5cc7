"""Builders and scorers of the knowledge-intensive suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest

from sparsebench.data.sources import resolve
from sparsebench.errors import InputError
from sparsebench.tasks import questions, registry, texts
from sparsebench.tasks.builders import build_rows
from sparsebench.tasks.generated_text import degeneration, final_number, summary


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return resolve([{"path": str(tmp_path / "rows.jsonl")}])


def test_halves_do_not_meet_and_lose_nothing(tmp_path: Path) -> None:
    data = written(tmp_path, [{"text": f"document {i}"} for i in range(200)])
    one, other = (texts.half(data, None, part) for part in ("calibration", "evaluation"))
    names = [{row["text"] for row in half} for half in (one, other)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 200
    assert 60 < len(names[0]) < 140
    with pytest.raises(InputError, match="half 'test'"):
        texts.half(data, None, "test")  # type: ignore[arg-type]


def test_the_calibration_half_is_not_evaluated() -> None:
    models.data_folder("redpajama_samples")
    from sparsebench.calibration_texts import SOURCES

    source = SOURCES["c4-half"]
    calibrated = {r["text"] for r in build_rows(source["build"], source["data"], source["options"], None).rows}
    definition = registry.get("c4-perplexity").definition
    evaluated = {r["text"] for r in build_rows(definition.build, definition.data, definition.options, None).rows}
    assert len(calibrated) > 400 and len(evaluated) > 400 and not calibrated & evaluated


def test_an_opening_is_followed_by_as_much_again(tmp_path: Path) -> None:
    data = written(tmp_path, [{"text": " ".join(map(str, range(n)))} for n in (5, 8, 20)])
    assert [row["prompt"] for row in texts.openings(data, None, words=4)] == ["0 1 2 3", "0 1 2 3"]


def test_worked_examples_are_not_asked(tmp_path: Path) -> None:
    rows = [{"q": f"What is {i}?", "a": f"number {i}", "aliases": [f"no. {i}"]} for i in range(10)]
    built = questions.few_shot(written(tmp_path, rows), None, question="q", answer="a", shots=3)
    assert len(built) == 7
    lead = built[0]["prompt"].rpartition("\n\n")[0]
    assert lead.count("What is") == 3
    assert not any(row["prompt"].rpartition("\n\n")[2] in lead for row in built)
    assert built[0]["aliases"] == [built[0]["target"], built[0]["target"].replace("number", "no.")]


def test_endings_come_six_lines_an_item(tmp_path: Path) -> None:
    lines = ["a man", "2", "w", "x", "y", "z"]
    (tmp_path / "h.txt").write_text("\n".join(lines) + "\n")
    (row,) = questions.endings(resolve([{"path": str(tmp_path / "h.txt")}]), None)
    assert (row["prompt"], row["choices"], row["target"]) == ("a man", ["w", "x", "y", "z"], "y")
    (tmp_path / "h.txt").write_text("\n".join(lines[:5]) + "\n")
    with pytest.raises(InputError, match="5 lines"):
        questions.endings(resolve([{"path": str(tmp_path / "h.txt")}]), None)


def test_the_open_book_holds_the_answer_once_and_asks_the_same_questions(tmp_path: Path) -> None:
    examples = [{"input": f"The capital of country{i} is", "target": f"city{i}"} for i in range(60)]
    (tmp_path / "q.json").write_text(json.dumps({"examples": examples}))
    data = resolve([{"path": str(tmp_path / "q.json")}])
    closed = build_rows("qa-wikidata", [{"path": str(tmp_path / "q.json")}], {"shots": 5, "seed": 0}, None).rows
    book = questions.open_book(data, None, facts=6)
    assert [row["id"] for row in book] == [row["id"] for row in closed]
    assert [row["prior"] for row in book] == [row["prior"] for row in closed]
    for row in book:
        told = row["passage"].splitlines()
        assert len(told) == 6
        assert told.count(f"{row['question']} {row['target']}.") == 1
        assert sum(f"{row['target']}." in line for line in told) == 1
    places = {row["passage"].splitlines().index(f"{row['question']} {row['target']}.") for row in book}
    assert len(places) == 6


@pytest.mark.parametrize(
    ("response", "correct", "empty"),
    [
        ("She makes 9 * 2 = $18 a day.\n#### 18", 1, 0),
        ("1,018 - 1,000 = 18.00", 1, 0),
        ("18\n\nQuestion: How many?\nAnswer: 7", 1, 0),
        ("18 or 19", 0, 0),
        ("eighteen", 0, 1),
        ("", 0, 1),
    ],
)
def test_the_last_number_counts(response: str, correct: float, empty: float) -> None:
    row = {"target": "so she has <<9*2=18>>18.\n#### 18"}
    assert final_number(row, response) == {"correct": correct, "empty": empty}


def test_an_empty_summary_scores_nothing() -> None:
    story = "A dam broke. Water ran through the town. Nobody was hurt. The mayor spoke later."
    row = {"story": story}
    assert summary(row, "") == {"rouge_lead": 0, "supported": 0, "distinct": 0, "looping": 0, "empty": 1}
    copied = summary(row, "A dam broke. Water ran through the town. Nobody was hurt.")
    assert copied["rouge_lead"] == 1 and copied["supported"] == 1
    invented = summary(row, "Aliens landed near Paris yesterday evening")
    assert invented["rouge_lead"] == invented["supported"] == 0 and invented["distinct"] == 1


def test_a_text_that_repeats_itself_is_looping() -> None:
    assert degeneration(["a", "b"] * 20)["looping"] == 1
    assert degeneration([str(i) for i in range(40)]) == {"distinct": 1, "looping": 0, "empty": 0}
    assert degeneration([]) == {"distinct": 0, "looping": 0, "empty": 1}


KNOWLEDGE = [
    "c4-perplexity",
    "triviaqa",
    "lambada",
    "hellaswag",
    "piqa",
    "openbookqa",
    "gsm8k",
    "news-summaries",
    "mt-bench-text",
]


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_tasks_of_the_suite_read_their_data(name: str) -> None:
    definition = registry.get(name).definition
    models.data_folder(definition.data[0]["local"].partition("/")[0])
    bound = registry.get(name).bind(models.tiny_tokenizer(), 3)
    assert bound.workload.samples == 3
    if definition.type == "choice":
        assert all(0 <= row["gold"] < len(row["choices"]) for row in bound.rows)
