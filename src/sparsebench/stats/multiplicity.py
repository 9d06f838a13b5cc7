"""Corrections for many tests: Holm inside a gate, Benjamini and Hochberg in exploratory tables.

Both return adjusted p values, to be compared with the level itself. NaN stands for "not tested": it stays NaN and is no
member of the family.
"""

from __future__ import annotations

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
