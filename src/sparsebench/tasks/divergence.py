"""How far a sparse model's predictions are from the dense model's own: KL divergence and agreement.

The dense model is observed before anything is attached to it; what it said is kept with it, in its own precision, for
as long as it is loaded. Two forms:

- `divergence`: over windows of a text, at every eighth token;
- `continuation`: along the dense model's own greedy text behind each prompt, at its tokens 1 to 8 and 57 to 64. Both
  models are fed the same text, so that a difference of late and early tokens is no difference of texts. Beside it the
  sparse model continues each prompt by itself: its tokens are compared with the dense model's, place by place, and the
  dense model says how unlikely it holds them. It is asked in prefill, which methods that act in decode leave dense;
  where prefill is not, by the dense text's own distributions, it is not asked, and that column is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebench.errors import InputError
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.perplexity import BoundPerplexityTask
from sparsebench.tasks.prompts import BoundPromptTask

if TYPE_CHECKING:
    import torch

    from sparsebench.engine.distributions import Asked

EVERY = 8
"""Tokens between the positions of a window at which distributions are compared: a vocabulary is large."""
EARLY, LATE = range(0, 8), range(56, 64)
"""Places of generated tokens that are compared."""
DENSE_PREFILL = 0.01
"""Mean KL divergence in nats below which prefill counts as dense: that of half-precision rounding is a tenth of it."""


@dataclass
class Observed:
    """What the dense model said.

    Attributes:
        asked: The sequences with their positions.
        logits: Its logits at those, one `[positions, vocabulary]` a sequence, on the CPU.
        texts: Its own greedy tokens, where the task has it continue prompts.
    """

    asked: list[Asked]
    logits: list[torch.Tensor]
    texts: list[list[int]]


class DivergenceTask(DefinedTask):
    """Windows of a text, from a definition."""

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundTask:
        """Windows, or prompts, of the tokenised text."""
        if self.definition.type == "continuation":
            return BoundContinuationTask(self.definition, tokenizer, limit)
        return BoundDivergenceTask(self.definition, tokenizer, limit)


class BoundDivergenceTask(BoundPerplexityTask):
    """Divergence with its windows."""

    def observe(self, system: Any) -> None:
        """What the dense model predicts in the windows."""
        observed(self, system)

    def sequences(self, system: Any) -> tuple[list[Asked], list[list[int]]]:
        """The windows; every token runs in prefill, or those from `score_from` on in decode."""
        from sparsebench.engine.distributions import Asked

        first, window = self.definition.score_from, self.definition.window
        positions = range(first - 1, window - 1, EVERY)
        prefill = first - 1 if self.definition.decode else window
        return [Asked(tokens.tolist()[:-1], list(positions), prefill) for _, tokens in self.windows], []

    def evaluate(self, system: Any) -> TaskResult:
        """Compare at every position."""
        import pandas as pd

        reference = observed(self, system)
        kl, same = compared(system, reference)
        places = [f"window-{place}" for place, _ in self.windows]
        count = float(len(reference.asked[0].positions))
        frame = pd.DataFrame(
            {
                "sample": places,
                "cluster": places,
                "kl": [float(values.sum()) for values in kl],
                "kl.weight": count,
                "agree": [float(values.sum()) for values in same],
                "agree.weight": count,
            }
        )
        return TaskResult(frame, {"windows": len(places), "window": self.definition.window, "every": EVERY})


class BoundContinuationTask(BoundPromptTask):
    """Prompts that the dense model continues."""

    def __init__(self, definition: TaskDefinition, tokenizer: Any, limit: int | None) -> None:
        super().__init__(definition, tokenizer, limit)
        self.tokenizer = tokenizer
        count = len(self.rows)
        self.workload = Workload(count, 2 * self.workload.prefill, 2 * LATE.stop * count, 17 * count, 0)

    def _check_rows(self) -> None:
        """Nothing is scored but what the dense model says."""

    def observe(self, system: Any) -> None:
        """The dense model's own greedy texts, and what it predicts along them."""
        observed(self, system)

    def sequences(self, system: Any) -> tuple[list[Asked], list[list[int]]]:
        """Prompts with the dense model's texts; the prompt but its last token runs in prefill, the rest in decode."""
        from sparsebench.engine.distributions import Asked

        texts = self._continued(system)
        asked = []
        for prompt, text in zip(self._prompts(), texts, strict=True):
            positions = [len(prompt) - 1 + place for place in (*EARLY, *LATE)]
            asked.append(Asked([*prompt, *text[:-1]], positions, len(prompt) - 1))
        return asked, texts

    def _prompts(self) -> list[list[int]]:
        return [list(self.tokenizer.encode(str(row["prompt"]))) for row in self.rows]

    def _continued(self, system: Any) -> list[list[int]]:
        """Greedy tokens behind each prompt, as many as are compared, whatever ends a text otherwise."""
        from sparsebench.engine.generation import Generator, Prompt

        if not system.packed:
            raise InputError(f"texts of {type(system.model).__name__} are not to be had: {system.obstacle}")
        prompts = [Prompt(tokens, len(tokens) - 1, (), LATE.stop, frozenset()) for tokens in self._prompts()]
        generator = Generator(system, prompts)
        generator.run()
        return [tokens[: LATE.stop] for tokens in generator.tokens]

    def evaluate(self, system: Any) -> TaskResult:
        """Compare along the dense text; then continue the prompts and compare the texts."""
        import pandas as pd

        reference = observed(self, system)
        kl, _ = compared(system, reference)
        own = self._continued(system)
        split = len(EARLY)
        agree = np.array(
            [[a == b for a, b in zip(x, y, strict=True)] for x, y in zip(own, reference.texts, strict=True)],
            dtype=float,
        )
        unlikely = self._unlikely(system, own) if prefill_is_dense(system, reference) else np.full(len(own), np.nan)
        names = [row["sample"] for row in self.rows]
        frame = pd.DataFrame(
            {
                "sample": names,
                "cluster": [row["cluster"] for row in self.rows],
                "kl_early": [float(values[:split].mean()) for values in kl],
                "kl_late": [float(values[split:].mean()) for values in kl],
                "agree": agree.mean(axis=1),
                "agree_late": agree[:, LATE.start : LATE.stop].mean(axis=1),
                "unlikely_late": unlikely,
            }
        )
        return TaskResult(frame, {"tokens": LATE.stop})

    def _unlikely(self, system: Any, texts: list[list[int]]) -> np.ndarray:
        """Mean negative log-likelihood of the late tokens of each text, read in prefill, `[prompts]`."""
        from sparsebench.engine.scoring import Scored, score

        whole = [[*prompt, *text] for prompt, text in zip(self._prompts(), texts, strict=True)]
        found = score(system, [Scored(tokens, len(LATE), len(tokens)) for tokens in whole])
        return np.array([-float(scores.logprobs.mean()) for scores in found])


def prefill_is_dense(system: Any, reference: Observed) -> bool:
    """Whether the dense text has the dense model's own distributions when all of it runs in prefill."""
    kl, _ = compared(system, replace(reference, asked=[replace(a, prefill=len(a.tokens)) for a in reference.asked]))
    return float(np.mean(np.concatenate(kl))) < DENSE_PREFILL


def observed(task: BoundDivergenceTask | BoundContinuationTask, system: Any) -> Observed:
    """What the dense model said, observed once for as long as it is loaded; the first call must see it dense."""
    key = f"observed {task.spec.model_dump_json()}"
    if key not in system.memory:
        from sparsebench.engine.distributions import logits_of

        asked, texts = task.sequences(system)
        found: list[Any] = [[None] * len(each.positions) for each in asked]

        def keep(owners: Sequence[tuple[int, int]], logits: Any) -> None:
            for (number, place), row in zip(owners, logits.cpu(), strict=True):
                found[number][place] = row.clone()

        logits_of(system, asked, keep)
        import torch

        system.memory[key] = Observed(asked, [torch.stack(rows) for rows in found], texts)
    kept: Observed = system.memory[key]
    return kept


def compared(system: Any, reference: Observed) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """KL(dense || system) in nats, and whether their first choices agree, at each position of each sequence."""
    import torch

    from sparsebench.engine.distributions import divergence, logits_of

    kl = [np.full(len(each.positions), np.nan) for each in reference.asked]
    same = [np.full(len(each.positions), np.nan) for each in reference.asked]

    def compare(owners: Sequence[tuple[int, int]], logits: Any) -> None:
        dense = torch.stack([reference.logits[number][place] for number, place in owners]).to(logits.device)
        values, agree = divergence(dense, logits).tolist(), (dense.argmax(-1) == logits.argmax(-1)).tolist()
        for (number, place), value, equal in zip(owners, values, agree, strict=True):
            kl[number][place], same[number][place] = value, float(equal)

    logits_of(system, reference.asked, compare)
    return kl, same
