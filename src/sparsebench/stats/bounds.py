"""One-sided confidence bounds and p values of an effect, by the method that its data support.

Every method here answers the same four questions (`Bounds`), and each is coherent: `lower(alpha) > x` exactly when
`p_above(x) <= alpha`, so that an interval and a test never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[np.float64]


class Bounds(Protocol):
    """What is known of an effect."""

    def lower(self, alpha: float) -> float:
        """The one-sided lower bound at confidence `1 - alpha`; minus infinity where there is none."""

    def upper(self, alpha: float) -> float:
        """The one-sided upper bound at confidence `1 - alpha`; infinity where there is none."""

    def p_above(self, x: float) -> float:
        """The p value of "the effect is at most `x`", against its being above."""

    def p_below(self, x: float) -> float:
        """The p value of "the effect is at least `x`", against its being below."""


def tost(bounds: Bounds, low: float, high: float) -> float:
    """Two one-sided tests of equivalence (Schuirmann 1987): the p value of "the effect is outside (low, high)"."""
    return max(bounds.p_above(low), bounds.p_below(high))


@dataclass(frozen=True)
class Unknown:
    """Nothing can be said: fewer than two clusters."""

    def lower(self, alpha: float) -> float:
        """Minus infinity."""
        return -math.inf

    def upper(self, alpha: float) -> float:
        """Infinity."""
        return math.inf

    def p_above(self, x: float) -> float:
        """One."""
        return 1.0

    def p_below(self, x: float) -> float:
        """One."""
        return 1.0


@dataclass(frozen=True)
class Student:
    """A t interval.

    Attributes:
        estimate: The effect.
        error: Its standard error.
        df: Degrees of freedom; need not be whole.
    """

    estimate: float
    error: float
    df: float

    def lower(self, alpha: float) -> float:
        """`estimate - t * error`."""
        return self.estimate - float(special.stdtrit(self.df, 1 - alpha)) * self.error

    def upper(self, alpha: float) -> float:
        """`estimate + t * error`."""
        return self.estimate + float(special.stdtrit(self.df, 1 - alpha)) * self.error

    def p_above(self, x: float) -> float:
        """The upper tail of t."""
        return float(special.stdtr(self.df, -_standardised(self.estimate, x, self.error)))

    def p_below(self, x: float) -> float:
        """The lower tail of t."""
        return float(special.stdtr(self.df, _standardised(self.estimate, x, self.error)))


@dataclass(frozen=True)
class Studentised:
    """A bootstrap-t interval (Efron and Tibshirani 1993, 12.5).

    Resamples without variation have no t; they count against every conclusion, in both directions.

    Attributes:
        estimate: The effect.
        error: Its standard error, by the formula that the resamples use.
        resampled: t of each resample, sorted, `[resamples]`; undefined ones are NaN and stand last.
    """

    estimate: float
    error: float
    resampled: Array

    @property
    def _undefined(self) -> int:
        return int(np.isnan(self.resampled).sum())

    def lower(self, alpha: float) -> float:
        """`estimate` less the upper `alpha` quantile of t in standard errors."""
        rank = math.floor(alpha * (len(self.resampled) + 1) + 1e-9) - self._undefined
        defined = len(self.resampled) - self._undefined
        return self.estimate - float(self.resampled[defined - rank]) * self.error if rank > 0 else -math.inf

    def upper(self, alpha: float) -> float:
        """`estimate` less the lower `alpha` quantile of t in standard errors."""
        rank = math.floor(alpha * (len(self.resampled) + 1) + 1e-9) - self._undefined
        return self.estimate - float(self.resampled[rank - 1]) * self.error if rank > 0 else math.inf

    def p_above(self, x: float) -> float:
        """The share of resamples whose t is at least the one observed, undefined ones included."""
        t = _standardised(self.estimate, x, self.error)
        return float(1 + len(self.resampled) - np.searchsorted(self.resampled, t, "left")) / (len(self.resampled) + 1)

    def p_below(self, x: float) -> float:
        """The share of resamples whose t is at most the one observed, undefined ones included."""
        t = _standardised(self.estimate, x, self.error)
        defined = self.resampled[: len(self.resampled) - self._undefined]
        at_most = int(np.searchsorted(defined, t, "right")) + self._undefined
        return (1 + at_most) / (len(self.resampled) + 1)


@dataclass(frozen=True)
class Score:
    """The score interval of a paired difference of proportions (Tango 1998), with a continuity correction of a half.

    The correction keeps the one-sided error at most nominal at every discordance (the tests enumerate it); without it
    the error reaches .06. It stands with no discordant pair at all, where n = 3.6 / margin is needed at alpha .05:
    slightly more than the rule of three.

    Attributes:
        gained: Pairs that are wrong with dense and right with sparse.
        lost: Pairs that are right with dense and wrong with sparse.
        n: All pairs.
    """

    gained: int
    lost: int
    n: int

    def _z(self, x: float, correction: float) -> float:
        """The score statistic of "the difference is x"."""
        a, b = 2 * self.n, (2 * self.n - self.gained + self.lost) * x - self.gained - self.lost
        c = -self.lost * x * (1 - x)
        lost_rate = max((math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a), 0)
        variance = self.n * (2 * lost_rate + x * (1 - x))
        distance = self.gained - self.lost - self.n * x + correction
        return _standardised(distance, 0, math.sqrt(max(variance, 0)))

    def lower(self, alpha: float) -> float:
        """The smallest difference that the test does not reject."""
        return _least_not_rejected(self, alpha)

    def upper(self, alpha: float) -> float:
        """The largest difference that the test does not reject."""
        return -Score(self.lost, self.gained, self.n).lower(alpha)

    def p_above(self, x: float) -> float:
        """The upper tail of the score statistic."""
        return float(special.ndtr(-self._z(x, -0.5))) if -1 < x < 1 else float(x >= 1)

    def p_below(self, x: float) -> float:
        """The lower tail of the score statistic."""
        return Score(self.lost, self.gained, self.n).p_above(-x)


@lru_cache(maxsize=100_000)  # cells of one table often share their counts
def _least_not_rejected(score: Score, alpha: float) -> float:
    z = float(special.ndtri(1 - alpha))
    point = (score.gained - score.lost) / score.n
    if point <= -1 or score._z(-1 + 1e-12, -0.5) <= z:
        return -1.0
    return float(optimize.brentq(lambda x: score._z(x, -0.5) - z, -1 + 1e-12, point, xtol=1e-12))


@dataclass(frozen=True)
class Proportion:
    """Exact bounds of a proportion (Clopper and Pearson 1934), with the binomial test.

    Attributes:
        hits: How many are right; need not be whole.
        n: Of how many independent ones; need not be whole.
    """

    hits: float
    n: float

    def lower(self, alpha: float) -> float:
        """The exact lower bound."""
        return float(special.betaincinv(self.hits, self.n - self.hits + 1, alpha)) if self.hits > 0 else 0.0

    def upper(self, alpha: float) -> float:
        """The exact upper bound."""
        return 1 - Proportion(self.n - self.hits, self.n).lower(alpha)

    def p_above(self, x: float) -> float:
        """The chance of as many hits or more, were the proportion `x`."""
        if x < 0:
            return 0.0
        return float(special.betainc(self.hits, self.n - self.hits + 1, x)) if x < 1 and self.hits > 0 else 1.0

    def p_below(self, x: float) -> float:
        """The chance of as few hits or fewer, were the proportion `x`."""
        return Proportion(self.n - self.hits, self.n).p_above(1 - x)


@dataclass(frozen=True)
class Rare:
    """Bounds where few samples changed, so that their spread says little.

    The share of samples that moved one way has an exact binomial bound, and none moves by more than `span`: with no
    change seen among n samples this is the rule of three, `3 * span / n`.

    Attributes:
        gained: Share of the samples whose value rose.
        lost: Share of the samples whose value fell.
        n: Effective number of independent samples; need not be whole.
        span: The farthest that one sample can move.
    """

    gained: float
    lost: float
    n: float
    span: float

    def lower(self, alpha: float) -> float:
        """Every sample that may have fallen fell by `span`, and none rose."""
        return -self.span * Proportion(self.lost * self.n, self.n).upper(alpha)

    def upper(self, alpha: float) -> float:
        """Every sample that may have risen rose by `span`, and none fell."""
        return self.span * Proportion(self.gained * self.n, self.n).upper(alpha)

    def p_above(self, x: float) -> float:
        """The chance of as few falls as were seen, had a share `-x / span` fallen."""
        return Proportion(self.lost * self.n, self.n).p_below(-x / self.span) if x < 0 else 1.0

    def p_below(self, x: float) -> float:
        """The chance of as few rises as were seen, had a share `x / span` risen."""
        return Rare(self.lost, self.gained, self.n, self.span).p_above(-x)


@dataclass(frozen=True)
class Outermost:
    """The most careful of several methods: the outermost bounds and the largest p values."""

    members: Sequence[Bounds]

    def lower(self, alpha: float) -> float:
        """The lowest of the lower bounds."""
        return min(member.lower(alpha) for member in self.members)

    def upper(self, alpha: float) -> float:
        """The highest of the upper bounds."""
        return max(member.upper(alpha) for member in self.members)

    def p_above(self, x: float) -> float:
        """The largest of the p values."""
        return max(member.p_above(x) for member in self.members)

    def p_below(self, x: float) -> float:
        """The largest of the p values."""
        return max(member.p_below(x) for member in self.members)


@dataclass(frozen=True)
class Mapped:
    """Bounds seen on another scale, through an increasing function; a side that is open stays open.

    Attributes:
        inner: The bounds on the first scale.
        forward: From the first scale to this one.
        backward: Its inverse; minus infinity below the range of `forward`.
    """

    inner: Bounds
    forward: Callable[[float], float]
    backward: Callable[[float], float]

    def lower(self, alpha: float) -> float:
        """The image of the lower bound."""
        bound = self.inner.lower(alpha)
        return bound if math.isinf(bound) else self.forward(bound)

    def upper(self, alpha: float) -> float:
        """The image of the upper bound."""
        bound = self.inner.upper(alpha)
        return bound if math.isinf(bound) else self.forward(bound)

    def p_above(self, x: float) -> float:
        """The p value at the point that maps to `x`."""
        return self.inner.p_above(self.backward(x))

    def p_below(self, x: float) -> float:
        """The p value at the point that maps to `x`."""
        return self.inner.p_below(self.backward(x))


def _standardised(estimate: float, x: float, error: float) -> float:
    """`(estimate - x) / error`; without any error the sign decides, and equality shows nothing."""
    if error > 0:
        return (estimate - x) / error
    return math.copysign(math.inf, estimate - x) if estimate != x else 0.0
