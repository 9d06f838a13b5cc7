"""Reading curves between their levels, many curves at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def where_reached(x: Array, y: Array, at: Array) -> Array:
    """The `x` at which each curve first rises to a height, linear between its points; NaN where it never does.

    Args:
        x: The points' places, `[points]` or `[curves, points]`, in the order of the curve.
        y: Their heights, `[curves, points]`.
        at: The height, `[curves]`.

    Returns:
        `[curves]`; the first point itself where the curve begins at the height or above.
    """
    places = np.broadcast_to(x, y.shape)
    above = y >= at[:, None]
    first = above.argmax(axis=1)
    rows = np.arange(len(y))
    before = np.maximum(first - 1, 0)
    low, high = y[rows, before], y[rows, first]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(first > 0, (at - low) / rise, 1.0)
    found = places[rows, before] + share * (places[rows, first] - places[rows, before])
    return np.where(above.any(axis=1), found, np.nan)


def read_at(x: Array, y: Array, at: Array) -> Array:
    """Heights of curves at places between their points; NaN beyond them.

    Args:
        x: Places of the points, rising, `[points]`.
        y: Heights, `[curves, points]`.
        at: A place on each curve, `[curves]`.
    """
    inside = (at >= x[0]) & (at <= x[-1])
    upper = np.clip(np.searchsorted(x, np.where(inside, at, x[0]), "left"), 1, len(x) - 1)
    rows = np.arange(len(y))
    share = (at - x[upper - 1]) / (x[upper] - x[upper - 1])
    found = y[rows, upper - 1] + share * (y[rows, upper] - y[rows, upper - 1])
    return np.where(inside, found, np.nan)
