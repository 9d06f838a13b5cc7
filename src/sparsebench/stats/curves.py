"""Curves that are linear but for one or two parameters: two lines that meet, and the logistic curve.

For each point of a fine grid of the nonlinear parameters the best linear ones are exact (separable least squares, Golub
and Pereyra 1973), so a fit is a search of the grid, has no starting value, and serves thousands of bootstrap
curves at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]

# Halving the step slowly lets the search follow a narrow valley, as between the middle and the width of a tail.
_ZOOMS = 12
_ZOOM_STEPS = 13


@dataclass(frozen=True)
class Family:
    """A family of curves.

    Attributes:
        axes: Values of each nonlinear parameter; the grid is their product.
        columns: From the grid `[grid, parameters]` and points `[points]` to the columns of the linear fit,
            `[grid, points, columns]`.
    """

    axes: tuple[Array, ...]
    columns: Callable[[Array, Array], Array]

    @property
    def grid(self) -> Array:
        """All combinations of the nonlinear parameters, `[grid, parameters]`."""
        return np.stack([axis.ravel() for axis in np.meshgrid(*self.axes, indexing="ij")], axis=1)

    def around(self, choice: int) -> Family:
        """The same family on a grid of half the step, from three steps before a grid point to three after."""
        places = [int(place) for place in np.unravel_index(choice, tuple(len(axis) for axis in self.axes))]
        finer = (
            np.linspace(axis[max(place - 3, 0)], axis[min(place + 3, len(axis) - 1)], _ZOOM_STEPS)
            for axis, place in zip(self.axes, places, strict=True)
        )
        return Family(tuple(finer), self.columns)


@dataclass(frozen=True)
class Fit:
    """The member of a family that fits a curve best by least squares.

    Attributes:
        family: The family.
        nonlinear: Its nonlinear parameters, `[parameters]`.
        linear: Its linear parameters, `[columns]`.
    """

    family: Family
    nonlinear: Array
    linear: Array

    def predict(self, points: Array) -> Array:
        """Heights at `points`."""
        return np.asarray(self.family.columns(self.nonlinear[None], points)[0] @ self.linear)


def two_lines(x: Array, steps: int = 401) -> Family:
    """Two lines that meet at a breakpoint between the second and the last but one of the points `x`."""

    def columns(grid: Array, points: Array) -> Array:
        line = np.broadcast_to(points, (len(grid), len(points)))
        return np.stack([np.ones_like(line), line, np.maximum(line - grid, 0)], axis=-1)

    return Family((np.linspace(x[1], x[-2], steps),), columns)


def logistic(x: Array, steps: int = 61) -> Family:
    """A logistic curve of any height, its middle up to one span outside the points `x`, so that it can be a tail.

    Width runs from a fiftieth of the span to twice it. Beyond the centre the rising tail is taken as the column, before
    it the falling one, each 1 at its end of the points: the two span the same curves, and a saturated column would be
    lost in the constant.
    """
    first, last = x[0], x[-1]
    span, centre = last - first, (first + last) / 2

    def columns(grid: Array, points: Array) -> Array:
        middle, width = grid[:, :1], grid[:, 1:]
        sign, end = np.where(middle > centre, 1.0, -1.0), np.where(middle > centre, last, first)
        tail = special.log_expit(sign * (points - middle) / width) - special.log_expit(sign * (end - middle) / width)
        return np.stack([np.ones_like(tail), np.exp(tail)], axis=-1)

    return Family((np.linspace(first - span, last + span, steps), span * np.geomspace(0.02, 2, steps)), columns)


def best_on_grid(x: Array, curves: Array, family: Family) -> npt.NDArray[np.intp]:
    """The grid point of the least-squares fit of each curve, `[curves]`.

    Args:
        x: The points, `[points]`.
        curves: Heights, `[points, curves]`.
        family: What to fit.
    """
    basis = np.linalg.qr(family.columns(family.grid, x)).Q
    grid, points, columns = basis.shape
    projected = basis.transpose(0, 2, 1).reshape(grid * columns, points) @ (curves - curves.mean(0))
    return np.asarray((projected**2).reshape(grid, columns, -1).sum(1).argmax(0))


def fit(x: Array, curve: Array, family: Family) -> Fit:
    """The least-squares fit of one curve `[points]`: the best grid point, then ever finer grids around the best yet."""
    choice = int(best_on_grid(x, curve[:, None], family)[0])
    for _ in range(_ZOOMS):
        family = family.around(choice)
        choice = int(best_on_grid(x, curve[:, None], family)[0])
    nonlinear = family.grid[choice]
    linear = np.linalg.lstsq(family.columns(nonlinear[None], x)[0], curve)[0]
    return Fit(family, nonlinear, np.asarray(linear))


def left_out_errors(x: Array, curve: Array, family_of: Callable[[Array], Family]) -> Array:
    """Squared errors of each inner point, predicted from all others, `[points - 2]`."""
    errors = []
    for left_out in range(1, len(x) - 1):
        kept = np.delete(np.arange(len(x)), left_out)
        found = fit(x[kept], curve[kept], family_of(x[kept]))
        errors.append(float(curve[left_out] - found.predict(x[left_out : left_out + 1])[0]) ** 2)
    return np.array(errors)
