"""On which scale a sparse system is compared with its baseline.

`sparse` and `dense` are the weighted means `sum(numerator) / sum(weight)` of the two systems, before any transform: an
accuracy, or the mean negative log-likelihood whose exponential is the perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def exp(x: float) -> float:
    """The exponential, infinite where it overflows."""
    return math.exp(x) if x < 700 else math.inf


def log(x: float) -> float:
    """The logarithm, minus infinity at and below 0."""
    return math.log(x) if x > 0 else -math.inf


def expm1(x: float) -> float:
    """`exp(x) - 1`, infinite where it overflows."""
    return math.expm1(x) if x < 700 else math.inf


def log1p(x: float) -> float:
    """`log(1 + x)`, minus infinity at and below -1."""
    return math.log1p(x) if x > -1 else -math.inf


@dataclass(frozen=True)
class Scale:
    """An effect as a function of two means.

    Attributes:
        name: How results name it.
        estimate: `(sparse, dense) -> effect`; zero where both are equal.
        gradient: `(sparse, dense) -> (d effect / d sparse, d effect / d dense)`.
        from_difference: `(sparse - dense, dense) -> effect`, the dense mean taken as known.
        to_difference: The inverse of `from_difference`.
    """

    name: str
    estimate: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    from_difference: Callable[[float, float], float]
    to_difference: Callable[[float, float], float]


DIFFERENCE = Scale(
    name="difference",
    estimate=lambda sparse, dense: sparse - dense,
    gradient=lambda sparse, dense: (np.ones_like(sparse), -np.ones_like(dense)),
    from_difference=lambda change, dense: change,
    to_difference=lambda effect, dense: effect,
)
"""Sparse less dense: points of accuracy, or the logarithm of a perplexity ratio."""

EXP_DIFFERENCE = Scale(
    name="difference of exponentials",
    estimate=lambda sparse, dense: np.exp(sparse) - np.exp(dense),
    gradient=lambda sparse, dense: (np.exp(sparse), -np.exp(dense)),
    from_difference=lambda change, dense: exp(dense) * expm1(change),
    to_difference=lambda effect, dense: log1p(effect / exp(dense)),
)
"""The difference of two perplexities."""

RELATIVE = Scale(
    name="relative difference",
    estimate=lambda sparse, dense: (sparse - dense) / np.abs(dense),
    gradient=lambda sparse, dense: (1 / np.abs(dense), -sparse / (dense * np.abs(dense))),
    from_difference=lambda change, dense: change / abs(dense),
    to_difference=lambda effect, dense: effect * abs(dense),
)
"""Sparse less dense, as a fraction of the size of dense."""
