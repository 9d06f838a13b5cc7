"""What comes of a finding: a verdict, why, and the figures that it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sparsebench.stats.bounds import Bounds

Verdict = Literal["holds", "refuted", "underpowered", "collapsed"]
"""`holds` and `refuted` are both shown; `underpowered`: neither is; `collapsed`: nothing is left to compare."""
Unit = Literal["", "points", "%", "nats", "x"]


@dataclass(frozen=True)
class Figure:
    """One line of evidence.

    Attributes:
        what: What was measured.
        value: The estimate.
        low: Its lower bound, one-sided at confidence 1 - alpha; NaN where it has none.
        high: Its upper bound.
        unit: `points` of a share, `%` of a ratio less one, `nats`, or `x` for a ratio; values are plain numbers.
        verdict: Of this line by itself, where the rule asks it of lines.
        note: What else there is to say.
    """

    what: str
    value: float
    low: float = math.nan
    high: float = math.nan
    unit: Unit = ""
    verdict: Verdict | None = None
    note: str = ""

    @classmethod
    def bounded(
        cls,
        what: str,
        value: float,
        bounds: Bounds,
        alpha: float,
        unit: Unit = "",
        verdict: Verdict | None = None,
        note: str = "",
    ) -> Figure:
        """A figure with its one-sided bounds."""
        return cls(what, value, bounds.lower(alpha), bounds.upper(alpha), unit, verdict, note)


@dataclass(frozen=True)
class Answer:
    """The answer of a rule.

    Attributes:
        verdict: The verdict.
        reason: Why, in a sentence.
        figures: What it rests on.
    """

    verdict: Verdict
    reason: str
    figures: list[Figure] = field(default_factory=list)


def of_lines(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of several lines that a finding makes at once.

    Collapsed lines say nothing. Of the others one that is refuted refutes the finding, and all must hold for it to
    hold.
    """
    alive = [verdict for verdict in verdicts if verdict != "collapsed"]
    if not alive:
        return "collapsed"
    if "refuted" in alive:
        return "refuted"
    return "holds" if all(verdict == "holds" for verdict in alive) else "underpowered"


def of_enough(lines: Sequence[Figure], required: int) -> Verdict:
    """The verdict of a finding that has to hold on so many of some lines, whichever they are.

    It is refuted where too few lines are left that are not.
    """
    if sum(line.verdict == "holds" for line in lines) >= required:
        return "holds"
    if sum(line.verdict == "refuted" for line in lines) > len(lines) - required:
        return "refuted"
    return "underpowered"
