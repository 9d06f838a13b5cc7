"""What a check found, as rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsebench.reports import notation
from sparsebench.reports.collect import budget_name, method_name
from sparsebench.reports.comparisons import Judgement
from sparsebench.store import StoredCell


@dataclass(frozen=True)
class CheckRow:
    """One comparison of a check.

    Attributes:
        tier: `cells`, `exact` or `quality`.
        name: The cell, as printed: `wanda 50% on facts-qa`.
        what: The metric or count; empty where a whole cell is meant.
        verdict: `same`, one of the four verdicts, `no signal`, `not exercised`, `changed`, `missing`, `failed`,
            `refused`, `new` or `not compared`.
        fails: Whether it fails the gate.
        reason: Why.
        baseline: The value in the baseline folder.
        candidate: The value in the candidate folder.
        judgement: The comparison, for the quality tier.
        headline: Whether it takes part in the gate.
    """

    tier: str
    name: str
    what: str
    verdict: str
    fails: bool
    reason: str = ""
    baseline: float | None = None
    candidate: float | None = None
    judgement: Judgement | None = None
    headline: bool = True


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        rows: Every comparison, in a fixed order.
        notes: What else differs between the two: model fingerprints, method versions.
        alpha: Chance of a false alarm.
    """

    rows: list[CheckRow]
    notes: list[str] = field(default_factory=list)
    alpha: float = 0.05

    @property
    def passed(self) -> bool:
        """Whether nothing fails the gate."""
        return not any(row.fails for row in self.rows)

    @property
    def failures(self) -> list[CheckRow]:
        """The rows that fail it."""
        return [row for row in self.rows if row.fails]


def name_of(cell: StoredCell) -> str:
    """A cell as printed: `wanda 50% on facts-qa`."""
    parts = [method_name(cell), budget_name(cell.spec.stack), cell.spec.system.replica, cell.record.placement.config]
    return notation.printable(f"{' '.join(p for p in parts if p)} on {cell.spec.task.id}", 120)
