"""How small a loss a number of samples can see, and how many samples a margin needs.

For a one-sided test at level `alpha` with power `power`, the minimum detectable effect (MDE) is the sum of the two
normal (or t) quantiles times the standard error. The same number is the smallest margin for which a system that truly
keeps its quality is found non-inferior with that power.
"""

from __future__ import annotations

import math

from scipy import special

ALPHA = 0.05
POWER = 0.8


def quantile_sum(alpha: float = ALPHA, power: float = POWER, df: float = math.inf) -> float:
    """How many standard errors an effect must measure: 2.49 with the defaults and many samples."""
    if math.isinf(df):
        return float(special.ndtri(1 - alpha) + special.ndtri(power))
    return float(special.stdtrit(df, 1 - alpha) + special.stdtrit(df, power))


def mde_from_error(error: float, *, df: float = math.inf, alpha: float = ALPHA, power: float = POWER) -> float:
    """The MDE of an effect with standard error `error` on `df` degrees of freedom."""
    return quantile_sum(alpha, power, df) * error


def mde_binary(
    discordance: float, n: int, *, alpha: float = ALPHA, power: float = POWER, design_effect: float = 1.0
) -> float:
    """The MDE of a paired difference of accuracies, as a fraction (0.01 is a point).

    Args:
        discordance: Share of the samples whose correctness differs between the two systems.
        n: Number of samples.
        alpha: One-sided level.
        power: Chance of seeing the effect.
        design_effect: What clustering multiplies the variance by.
    """
    return mde_from_error(math.sqrt(discordance * design_effect / n), alpha=alpha, power=power)


def mde_continuous(
    sd: float, n: int, *, alpha: float = ALPHA, power: float = POWER, design_effect: float = 1.0, clusters: int = 0
) -> float:
    """The MDE of a paired difference of means.

    Args:
        sd: Standard deviation of the paired differences.
        n: Number of samples.
        alpha: One-sided level.
        power: Chance of seeing the effect.
        design_effect: What clustering multiplies the variance by.
        clusters: Number of clusters, for the degrees of freedom; 0 where samples are independent.
    """
    df = (clusters or n) - 1
    return mde_from_error(sd * math.sqrt(design_effect / n), df=df, alpha=alpha, power=power)


def required_n_binary(
    discordance: float, margin: float, *, alpha: float = ALPHA, power: float = POWER, design_effect: float = 1.0
) -> int:
    """Samples for which the MDE of a paired difference of accuracies is `margin`."""
    return math.ceil(discordance * design_effect * (quantile_sum(alpha, power) / margin) ** 2)


def required_n_continuous(
    sd: float, margin: float, *, alpha: float = ALPHA, power: float = POWER, design_effect: float = 1.0
) -> int:
    """Samples for which the MDE of a paired difference of means is `margin` (normal quantiles)."""
    return math.ceil(design_effect * (quantile_sum(alpha, power) * sd / margin) ** 2)


def power_of(effect: float, error: float, *, alpha: float = ALPHA, df: float = math.inf) -> float:
    """The chance that a one-sided test sees `effect`, given its standard error.

    For non-inferiority the effect is the margin less the true loss.
    """
    if math.isinf(df):
        return float(special.ndtr(effect / error - special.ndtri(1 - alpha)))
    return 1 - float(special.nctdtr(df, effect / error, special.stdtrit(df, 1 - alpha)))
