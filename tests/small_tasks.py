"""Tasks of every kind, small enough for tests: five prompts, a text of some hundred words, a collection of five documents."""

from __future__ import annotations

import json
from pathlib import Path

import models
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
