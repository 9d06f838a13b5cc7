"""McNemar's test of paired right-or-wrong answers, exact."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class McNemar:
    """p values from the discordant pairs alone (McNemar 1947; mid-p: Fagerland, Lydersen and Laake 2013).

    Attributes:
        p: Two-sided, exact.
        mid_p: Two-sided mid-p: nearer to nominal, not guaranteed to stay below it; shown, never decided upon.
        p_lost: One-sided, exact, against more answers being lost than gained.
        p_gained: One-sided, exact, against more answers being gained than lost.
    """

    p: float
    mid_p: float
    p_lost: float
    p_gained: float


def mcnemar(lost: int, gained: int) -> McNemar:
    """Exact McNemar test, conditional on the number of discordant pairs.

    Args:
        lost: Pairs that are right with dense and wrong with sparse.
        gained: Pairs that are wrong with dense and right with sparse.
    """
    n, fewer = lost + gained, min(lost, gained)
    at_most = _at_most(fewer, n)
    same = at_most - _at_most(fewer - 1, n)
    p = min(1.0, 2 * at_most)
    if lost != gained:
        mid_p = p - same
    else:
        # With a tie every outcome is as extreme as the one seen; with no discordant pair there is but that one.
        mid_p = 1 - 0.5 * same if lost else 1.0
    return McNemar(p, mid_p, _at_most(gained, n), _at_most(lost, n))


def _at_most(hits: int, n: int) -> float:
    """The chance of at most so many heads in n tosses of a fair coin."""
    return float(special.bdtr(hits, n, 0.5)) if hits >= 0 else 0.0
