"""Corrections for many tests: Holm inside a gate, Benjamini and Hochberg in exploratory tables.

All return adjusted p values, to be compared with the level itself. NaN stands for "not tested": it stays NaN and is no
member of the family.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from sparsebench.errors import InputError

Array = npt.NDArray[np.float64]


def holm(p: npt.ArrayLike) -> Array:
    """Holm's (1979) adjusted p values: controls the chance of any false rejection, whatever the dependence.

    Args:
        p: p values, `[tests]`.

    Raises:
        InputError: If a p value is outside [0, 1].
    """
    adjusted, tested = _family(p)
    family = adjusted[tested]
    order = np.argsort(family, kind="stable")
    stepped = np.maximum.accumulate(family[order] * np.arange(len(family), 0, -1))
    family[order] = np.minimum(stepped, 1)
    adjusted[tested] = family
    return adjusted


def holm_of_sequences(sequences: Sequence[Sequence[float]]) -> list[list[float]]:
    """Adjusted p values of several fixed sequences of tests: a chain procedure (Bretz et al. 2009; Maurer et al. 1995).

    Each sequence is tested in its order, which must be fixed beforehand, and stops at its first failure. With k
    sequences each has 1 / k of the level; one that passed to its end leaves its share to the others in equal parts. The
    chance of any false rejection is at most the level, whatever the dependence. With sequences of one test this is
    Holm's procedure, with one sequence it is fixed-sequence testing at the full level.

    Args:
        sequences: p values of each sequence, in its order. NaN is a test that cannot pass: it ends its sequence.

    Returns:
        Adjusted p values in the same places; NaN stays NaN, and what comes after it is 1.

    Raises:
        InputError: If a p value is outside [0, 1].
    """
    for sequence in sequences:
        _family(list(sequence))
    adjusted = [[float("nan") if np.isnan(p) else 1.0 for p in sequence] for sequence in sequences]
    position = {k: 0 for k, sequence in enumerate(sequences) if len(sequence)}
    largest = 0.0
    while position:
        # A failure does not leave the family: its share of the level is spent.
        standing = {k: sequences[k][at] for k, at in position.items() if not np.isnan(sequences[k][at])}
        if not standing:
            break
        k = min(standing, key=lambda key: (standing[key], key))
        largest = max(largest, min(1.0, standing[k] * len(position)))
        adjusted[k][position[k]] = largest
        position[k] += 1
        if position[k] == len(sequences[k]):
            del position[k]
    return adjusted


def benjamini_hochberg(p: npt.ArrayLike) -> Array:
    """Benjamini and Hochberg's (1995) adjusted p values: controls the share of false rejections among all.

    Args:
        p: p values, `[tests]`, independent or positively dependent.

    Raises:
        InputError: If a p value is outside [0, 1].
    """
    adjusted, tested = _family(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(adjusted[tested], method="bh")
    return adjusted


def _family(p: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    values = np.array(p, dtype=np.float64)
    tested = ~np.isnan(values)
    if values.ndim != 1 or ((values[tested] < 0) | (values[tested] > 1)).any():
        raise InputError("p values should be one row of numbers between 0 and 1", f"got {p!r}")
    return values, tested
