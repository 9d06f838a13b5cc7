"""Metrics as values: `value = transform(sum of numerators / sum of denominators)` over samples.

One form for all of them means that every published number can be computed again from the stored samples, and that
every paired test works on the same numbers. A metric whose arithmetic changes gets a new version; results with
different versions are never compared.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pandas as pd


LARGEST_EXPONENT = 709.0
"""exp of more is no float; a perplexity beyond is given as exp of this."""


_LIKELIHOODS = {"nll", "kl", "kl_early", "kl_late", "unlikely_late"}
_MILLISECONDS = {"first_token_ms", "token_ms", "dense_first_token_ms", "dense_token_ms"}
LOSSES = frozenset(_LIKELIHOODS | _MILLISECONDS | {"empty", "looping"})
"""Columns of which less is better, among those that our tasks and scorers give."""
EXPONENTIAL = frozenset({"nll"})
"""Columns whose mean is shown as its exponential: a perplexity."""


class Metric(BaseModel):
    """A metric of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Canonical name, unique in its task: `accuracy`, `perplexity`, `nDCG@10`."""
    column: str
    """Column of the samples that holds the numerator; NaN where a sample has no part in it."""
    version: int = 1
    kind: Literal["binary", "continuous"] = "continuous"
    """Binary numerators are 0 or 1 and get exact tests."""
    transform: Literal["identity", "exp"] = "identity"
    higher_is_better: bool = True
    headline: bool = False
    """Verdicts of the task rest on its headline metrics; the others are shown."""
    chance: float | None = None
    """What guessing reaches; a baseline not above it carries no signal. None: the metric has no chance level."""
    unit: str = ""

    def with_defaults(self) -> Metric:
        """What a definition leaves out, by the column: a loss is better lower, and an `nll` is a perplexity."""
        known = {
            "higher_is_better": self.column not in LOSSES,
            "transform": "exp" if self.column in EXPONENTIAL else "identity",
        }
        return self.model_copy(update={key: v for key, v in known.items() if key not in self.model_fields_set})

    @property
    def weight(self) -> str:
        """Column of the denominators; absent where each is 1."""
        return f"{self.column}.weight"

    def value(self, samples: pd.DataFrame) -> float | None:
        """The metric over `samples`; None when no sample has a part in it, or it is no finite number."""
        numerator = samples[self.column]
        present = numerator.notna()
        if not present.any():
            return None
        weights = samples.loc[present, self.weight] if self.weight in samples else present[present]
        total = float(weights.sum(skipna=False))
        ratio = float(numerator[present].sum()) / total if total else math.nan
        if self.transform == "exp" and not math.isnan(ratio):
            return math.exp(min(ratio, LARGEST_EXPONENT))
        return ratio if math.isfinite(ratio) else None
