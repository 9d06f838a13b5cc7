"""Perplexity over windows of a text, with its protocol stated.

The documents are joined by blank lines and cut into windows of `window` tokens that do not overlap (stride = window).
In each window the tokens from position `score_from` on are scored, each from all tokens before it in the window; no
token is put in front. Perplexity is exp(sum of negative log-likelihoods / number of scored tokens), natural log,
token-exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.builders import build_rows
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.prompts import even_choice


class PerplexityTask(DefinedTask):
    """Perplexity of a text, from a definition."""

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundPerplexityTask:
        """Windows of the tokenised text."""
        return BoundPerplexityTask(self.definition, tokenizer, limit)


class BoundPerplexityTask(BoundTask):
    """Perplexity with its windows."""

    def __init__(self, definition: TaskDefinition, tokenizer: Any, limit: int | None) -> None:
        built = build_rows(definition.build, definition.data, definition.options, tokenizer, definition.seed)
        text = "\n\n".join(str(row["text"]) for row in built.rows)
        tokens = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        count = len(tokens) // definition.window
        if count == 0:
            raise InputError(
                f"task {definition.task}: {len(tokens)} tokens of text make no window of {definition.window}"
            )
        cut = tokens[: count * definition.window].reshape(count, definition.window)
        wanted = min(x for x in (definition.windows, limit, count) if x is not None)
        self.windows = even_choice([(i, cut[i]) for i in range(count)], wanted, definition.seed)
        self.definition = definition
        self.metrics = list(definition.metrics)
        self.family = definition.family
        self.title = definition.title
        self.protocol = "window"
        hashed = content_hash([{"tokens": window.tolist()} for _, window in self.windows])
        self.data = [definition.fact(built.source, built.sha256)]
        self.spec = definition.spec(hashed, limit)
        total = len(self.windows) * definition.window
        scored = len(self.windows) * (definition.window - definition.score_from)
        self.workload = Workload(len(self.windows), total, 0, scored, definition.window)

    def evaluate(self, system: Any) -> TaskResult:
        """Score every window."""
        import pandas as pd

        from sparsebench.engine.lm import positions_of, refuse_beyond
        from sparsebench.engine.scoring import Scored, score

        first = self.definition.score_from
        window = self.definition.window
        refuse_beyond(system, window - 1, f"a window of task {self.definition.task}")
        by_query = self.definition.decode and system.decode_from_context_end
        requests = [
            Scored(tokens.tolist(), window - first, first - 1 if by_query else window) for _, tokens in self.windows
        ]
        scores = score(system, requests)
        frame = pd.DataFrame(
            {
                "sample": [f"window-{place}" for place, _ in self.windows],
                "cluster": [f"window-{place}" for place, _ in self.windows],
                "nll": [-float(s.logprobs.sum()) for s in scores],
                "nll.weight": [float(len(s.logprobs)) for s in scores],
                "greedy": [float(s.greedy.sum()) for s in scores],
                "greedy.weight": [float(len(s.logprobs)) for s in scores],
            }
        )
        facts = {
            "windows": len(self.windows),
            "window": window,
            "stride": window,
            "score_from": first,
            "tokens_scored": int(frame["nll.weight"].sum()),
        }
        known = positions_of(system)
        if known is not None and window - 1 > known:
            facts["beyond_positions"] = known
        return TaskResult(frame, facts)
