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

    @property
    def weight(self) -> str:
        """Column of the denominators; absent where each is 1."""
        return f"{self.column}.weight"

    def value(self, samples: pd.DataFrame) -> float | None:
        """The metric over `samples`; None when no sample has a part in it."""
        numerator = samples[self.column]
        present = numerator.notna()
        if not present.any():
            return None
        total = float(samples.loc[present, self.weight].sum()) if self.weight in samples else float(present.sum())
        if total == 0:
            return None
        ratio = float(numerator[present].sum()) / total
        if self.transform == "exp":
            return math.exp(ratio) if ratio < 700 else math.inf
        return ratio
