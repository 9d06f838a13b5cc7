"""McNemar's test of paired right-or-wrong answers, exact."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats


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
    discordant = stats.binom(lost + gained, 0.5)
    p = min(1.0, 2 * float(discordant.cdf(min(lost, gained))))
    if lost != gained:
        mid_p = p - float(discordant.pmf(min(lost, gained)))
    else:
        # With a tie every outcome is as extreme as the one seen; with no discordant pair there is but that one.
        mid_p = 1 - 0.5 * float(discordant.pmf(lost)) if lost else 1.0
    return McNemar(p, mid_p, float(discordant.sf(lost - 1)), float(discordant.sf(gained - 1)))
