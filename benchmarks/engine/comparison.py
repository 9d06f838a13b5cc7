"""One task on both sides in turns: how many times as fast the engine is, and how far its answers lie."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from protocol import Request, Turn, best_size, ours, peer, setting_of, side, store, times, verdict

from sparsebench.systems.loading import load_tokenizer
from sparsebench.tasks import registry
from sparsebench.tasks.scorers import choice_scorer, text_scorer

OTHER = ("1", "64")
"""Batch sizes of the peer whose answers are set against one another: its own drift."""

GREEDY = ("until", "max_gen_toks", "do_sample", "temperature")
"""Options of greedy generation."""


class Compared:
    """A task of the package as requests, and what its scorer says of answers to them."""

    def __init__(self, name: str, rows: list[dict[str, Any]], definition: Any) -> None:
        self.name = name
        self.rows = rows
        self.definition = definition
        self.generates = definition.type == "generate"
        self.requests = [r for number, row in enumerate(rows) for r in self._of(number, row)]

    @classmethod
    def load(cls, name: str, reference: str, items: int) -> Compared:
        """The first `items` samples, evenly spread, as `sparsebench run` has them at that limit."""
        bound: Any = registry.get(name).bind(load_tokenizer(reference), items)
        return cls(name, bound.rows, bound.definition)

    def part(self, keep: Sequence[int]) -> Compared:
        """The task with some of its samples."""
        return Compared(self.name, [self.rows[i] for i in keep], self.definition)

    def _of(self, number: int, row: dict[str, Any]) -> list[Request]:
        if self.generates:
            whole = self.definition.generation.options()
            options = {name: whole[name] for name in GREEDY}  # lm-eval's backend hands on what it does not know
            return [Request("generate_until", (row["prompt"], options), number)]
        return [Request("loglikelihood", (row["prompt"], f" {text}"), number) for text in row["choices"]]

    def accuracy(self, turn: Turn) -> dict[str, float]:
        """Means of the scorer's columns over the samples."""
        pairs = zip(self.requests, turn.answers, strict=True)
        answers = [[a for _, a in own] for _, own in groupby(pairs, key=lambda pair: pair[0].sample)]
        if self.generates:
            score = text_scorer(self.definition.scorer)
            scored = [score(row, own[0]) for row, own in zip(self.rows, answers, strict=True)]
        else:
            choose = choice_scorer(self.definition.scorer)
            scored = [choose(row, [v for v, _ in own]) for row, own in zip(self.rows, answers, strict=True)]
        names = [name for name in scored[0] if name.startswith("correct")]
        return {name: float(np.nanmean([row[name] for row in scored])) for name in names}

    def distance(self, one: Turn, other: Turn, tokenizer: Any) -> dict[str, float]:
        """How far answers lie apart: log-probability a token, or the share of equal texts."""
        if self.generates:
            return {"equal texts": float(np.mean([a == b for a, b in zip(one.answers, other.answers, strict=True)]))}
        lengths = [len(tokenizer.encode(r.arguments[1], add_special_tokens=False)) for r in self.requests]
        values = np.array([[a[0] for a in turn.answers] for turn in (one, other)])
        apart = (values[0] - values[1]) / np.maximum(lengths, 1)
        chosen = [[a[1] for a in turn.answers] for turn in (one, other)]
        return {
            "largest difference a token": float(np.abs(apart).max()),
            "root mean square a token": float(np.sqrt((apart**2).mean())),
            "mean a token": float(apart.mean()),
            "equal greedy": float(np.mean(np.array(chosen[0]) == np.array(chosen[1]))),
        }


def compare(chosen: argparse.Namespace, task: Compared, target: float) -> None:
    """Choose the peer's batch size, take turns, and store the ratio with the agreement of the answers."""
    setting, tokenizer = setting_of(chosen), load_tokenizer(chosen.model)
    trial = task.part(range(0, len(task.rows), max(1, len(task.rows) // chosen.trial)))
    with side(setting) as engine, side(setting) as backend:
        size, tried = best_size(backend, trial.requests, chosen.sizes)
        print("peer's seconds by batch size:", {k: round(v, 2) for k, v in tried.items()}, flush=True)
        engine.submit(ours, trial.requests).result()
        turns: dict[str, list[Turn]] = {"ours": [], "peer": []}
        for _ in range(chosen.rounds):
            turns["ours"].append(engine.submit(ours, task.requests).result())
            turns["peer"].append(backend.submit(peer, task.requests, size).result())
            print({name: round(own[-1].seconds, 2) for name, own in turns.items()}, flush=True)
        drift = [backend.submit(peer, trial.requests, other).result() for other in OTHER]
        own = [engine.submit(ours, trial.requests, tokens).result() for tokens in (512, 2048)]
    mine, theirs = turns["ours"][-1], turns["peer"][-1]
    seconds = {name: times(own) for name, own in turns.items()}
    found = {
        "task": task.name,
        "samples": len(task.rows),
        "requests": len(task.requests),
        "batch size": size,
        "seconds by batch size": tried,
        "samples of that": len(trial.rows),
        "seconds": seconds,
        **verdict(seconds["peer"]["median"] / seconds["ours"]["median"], target),
        "accuracy": {"ours": task.accuracy(mine), "peer": task.accuracy(theirs)},
        "ours against peer": task.distance(mine, theirs, tokenizer),
        f"peer at {OTHER[0]} against {OTHER[1]}": trial.distance(*drift, tokenizer),
        "ours at 512 tokens against 2048": trial.distance(*own, tokenizer),
    }
    store(chosen, found)
