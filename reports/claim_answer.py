"""What results say of a claim, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sparsebench.reports.claim_language import Claim

Answer = Literal["HOLDS", "REFUTED", "UNDERPOWERED"]


@dataclass(frozen=True)
class Part:
    """A claim about one cell and metric.

    Attributes:
        answer: What this part shows by itself.
        cell: The cell's id.
        name: The cell as printed.
        measure: The metric, or what is counted.
        value: The cell's value.
        baseline: The value that it is compared with; None for a count.
        loss: The loss, or the count itself.
        low: Lower end of its interval at confidence 1 - alpha; None for a count, which is exact.
        high: Upper end.
        limit: What the claim says, on the same scale.
        points: Whether that scale is the metric's units, and not a fraction of the baseline's value.
        p_holds: p value against the contrary of the claim.
        p_refuted: p value against the claim.
        n: Samples; None for a count.
        n_needed: Samples that would decide, were the loss as observed; None where it is decided or none would.
        why: What stands in the way; empty where nothing does.
        remark: What a reader should know of this comparison.
    """

    answer: Answer
    cell: str
    name: str
    measure: str
    value: float | None
    baseline: float | None
    loss: float | None
    low: float | None
    high: float | None
    limit: float
    points: bool
    p_holds: float
    p_refuted: float
    n: int | None = None
    n_needed: int | None = None
    why: str = ""
    remark: str = ""


@dataclass(frozen=True)
class ClaimAnswer:
    """What results say of a claim.

    Attributes:
        answer: `HOLDS` where every part does, each at alpha (intersection-union); `REFUTED` where any part is, the
            parts corrected by Holm; otherwise `UNDERPOWERED`.
        claim: The claim.
        parts: One for each cell and metric that it is about.
        alpha: Level of each one-sided test.
        n_still_needed: Further samples that the undecided part that lacks most would need; None where no number helps.
        tier: Size of the models: `S` below 1B parameters, `M` to 9B, `L` above; empty where it is not known.
        models: Models that were measured.
    """

    answer: Answer
    claim: Claim
    parts: tuple[Part, ...]
    alpha: float
    n_still_needed: int | None
    tier: str
    models: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The first thing that stands in the way of a decision; empty for a decided claim."""
        if self.answer != "UNDERPOWERED":
            return ""
        return next((part.why for part in self.parts if part.why), "these samples cannot tell")


def tier_of(parameters: Iterable[Any]) -> str:
    """`S` below a billion parameters, `M` to nine, `L` above; of several models the smallest, empty if unknown."""
    known = [p for p in parameters if isinstance(p, int | float)]
    if not known:
        return ""
    return "S" if min(known) < 1e9 else "M" if min(known) <= 9e9 else "L"
