"""Claims over several tests that need no correction: the largest safe level, and "on all tasks"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsebench.errors import InputError


@dataclass(frozen=True)
class LargestSafe:
    """The result of a fixed sequence of tests.

    Attributes:
        level: The largest level that passes together with every lower one; None if the lowest fails.
        first_failure: The lowest level that fails; None if none does.
        untested: Levels above the first failure: whatever they show, they count for nothing.
    """

    level: float | None
    first_failure: float | None
    untested: tuple[float, ...]


def largest_safe(levels: Sequence[float], p: Sequence[float], alpha: float = 0.05) -> LargestSafe:
    """Fixed-sequence testing of "safe at this level", from the lowest level up to the first failure.

    Each test has the full `alpha`: a wrong claim needs the first unsafe level to pass, and that has chance at most
    `alpha` (Maurer, Hothorn and Lehmacher 1995). The sequence must be fixed beforehand.

    Args:
        levels: How sparse, in any order, each once.
        p: The p value of "not safe" (inferior by the margin or more) at each level; NaN fails.
        alpha: The level of the whole sequence.

    Raises:
        InputError: If the lengths differ or a level comes twice.
    """
    if len(levels) != len(p) or len(set(levels)) != len(levels):
        raise InputError(f"{len(levels)} levels and {len(p)} p values", "give each level once, with one p value")
    ordered = sorted(zip(levels, p, strict=True))
    passed = 0
    while passed < len(ordered) and ordered[passed][1] <= alpha:
        passed += 1
    return LargestSafe(
        level=ordered[passed - 1][0] if passed else None,
        first_failure=ordered[passed][0] if passed < len(ordered) else None,
        untested=tuple(level for level, _ in ordered[passed + 1 :]),
    )


def intersection_union(p: Sequence[float]) -> float:
    """The p value of "on all tasks" (Berger 1982): the largest of the tasks' p values, without any correction.

    A task without a p value (NaN) makes it 1, and so does having no task.
    """
    return 1.0 if not p or any(math.isnan(value) for value in p) else max(p)
