"""A small suite with every kind of task, on a model of 260,000 weights and a collection of five documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import models
import pytest
import yaml

FACTS = [
    ("Once upon a time, there was a little girl named", "Lily"),
    ("Tom had a big red", "ball"),
    ("One day, the cat saw a small", "bird"),
    ("The dog wanted to play in the", "park"),
    ("Lily said to her mom, 'I want to go", "home"),
]
DOCUMENTS = {
    "d1": "the sparse matrix holds few numbers",
    "d2": "a dense matrix holds many numbers",
    "d3": "trees lose their leaves in autumn",
    "d4": "pruning a tree removes branches",
    "d5": "pruning a network removes weights",
}
QUERIES = {"q1": ("sparse matrix", {"d1": 2, "d2": 1}), "q2": ("pruning network weights", {"d5": 2, "d4": 1})}


@dataclass(frozen=True)
class SmallSuite:
    """A suite as YAML files in a folder; `write` changes it."""

    folder: Path
    data: dict

    @property
    def path(self) -> Path:
        return self.folder / "suite.yaml"

    def write(self, **changes) -> Path:
        """The suite's file, with top-level keys replaced."""
        self.path.write_text(yaml.safe_dump({**self.data, **changes}, sort_keys=False))
        return self.path

    def task(self, name: str) -> str:
        return str(self.folder / f"{name}.yaml")


def write_tasks(folder: Path) -> None:
    jsonl = "".join(
        json.dumps(
            {
                "id": f"s{i}",
                "prompt": prompt,
                "target": target,
                "choices": [target, "zzz", "the"],
                "gold": 0,
                "context": prompt,
                "answers": [target],
            }
        )
        + "\n"
        for i, (prompt, target) in enumerate(FACTS)
    )
    (folder / "facts.jsonl").write_text(jsonl)
    (folder / "text.txt").write_text("".join(models.STORIES) * 2)
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": "", "text": t}) + "\n" for i, t in DOCUMENTS.items())
    )
    (beir / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, (t, _) in QUERIES.items())
    )
    grades = [f"{q}\t{d}\t{g}\n" for q, (_, judged) in QUERIES.items() for d, g in judged.items()]
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(grades))
    rows = [{"path": str(folder / "facts.jsonl")}]
    tasks = {
        "tiny-answers": {
            "family": "knowledge",
            "type": "generate",
            "data": rows,
            "generation": {"until": ["."], "max_gen_toks": 6},
            "scorer": "short-answer",
            "metrics": [
                {"name": "accuracy", "column": "correct", "kind": "binary", "headline": True, "chance": 0.0},
                {"name": "empty answers", "column": "empty", "kind": "binary", "higher_is_better": False},
            ],
            "publish_text": True,
        },
        "tiny-choice": {
            "family": "reasoning",
            "type": "choice",
            "data": rows,
            "scorer": "choice",
            "metrics": [
                {"name": "accuracy", "column": "correct", "kind": "binary", "headline": True, "chance": 0.33},
                {"name": "gold log-probability", "column": "gold_logprob"},
            ],
        },
        "tiny-perplexity": {
            "family": "language",
            "type": "perplexity",
            "data": [{"path": str(folder / "text.txt")}],
            "build": "whole-text",
            "window": 48,
            "windows": 5,
            "metrics": [
                {
                    "name": "perplexity",
                    "column": "nll",
                    "transform": "exp",
                    "higher_is_better": False,
                    "headline": True,
                },
                {"name": "top-1 accuracy", "column": "greedy"},
            ],
        },
        "tiny-search": {
            "family": "retrieval",
            "type": "retrieval",
            "data": [{"path": str(beir)}],
            "metrics": [{"name": "nDCG@10", "column": "nDCG@10", "headline": True}],
        },
    }
    for name, task in tasks.items():
        whole = {"task": name, "version": 1, "title": name, **task}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained model where the data are; else one with random weights, which most of these tests need no better."""
    try:
        return f"path:{models.data_folder('stories260k')}"
    except pytest.skip.Exception:
        folder = tmp_path_factory.mktemp("llama")
        models.tiny_model("llama").save_pretrained(folder)
        models.tiny_tokenizer().save_pretrained(folder)
        return f"path:{folder}"


@pytest.fixture
def small(tmp_path: Path, reference: str) -> SmallSuite:
    """The suite: pruning on three language tasks, lexical search on a fourth."""
    folder = tmp_path / "suite"
    folder.mkdir()
    write_tasks(folder)
    data = {
        "suite": "small",
        "version": 1,
        "systems": {
            "stories": {"model": reference, "dtype": "float32"},
            "lexical": {"kind": "lexical"},
        },
        "grids": [
            {
                "name": "weights",
                "system": "stories",
                "tasks": [str(folder / f"tiny-{name}.yaml") for name in ("answers", "choice", "perplexity")],
                "methods": [
                    {"method": "dense", "noise": {"batch_tokens": 64}},
                    {"method": "random-weights", "budgets": {"sparsity": 0.5}, "seeds": [0, 1]},
                    {"method": "magnitude", "budgets": {"sparsity": 0.2, "pattern": "2:4"}},
                ],
            },
            {
                "name": "search",
                "system": "lexical",
                "baseline": "bm25",
                "tasks": [str(folder / "tiny-search.yaml")],
                "methods": ["bm25"],
            },
        ],
        "conclude": {"margins": {"*": {"*": {"points": 0.05}}}},
    }
    suite = SmallSuite(folder, data)
    suite.write()
    return suite
