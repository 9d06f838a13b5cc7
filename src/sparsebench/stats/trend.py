"""Trends over scale, judged by what they foretell of the largest scales, which they have not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from sparsebench.errors import InputError

Array = npt.NDArray[np.float64]
Form = Literal["power", "log-linear"]


@dataclass(frozen=True)
class Trend:
    """A straight line on logarithmic axes.

    Attributes:
        form: `power`: `y = exp(intercept) * x ** slope`; `log-linear`: `y = intercept + slope * log(x)`.
        intercept: As in `form`.
        slope: As in `form`.
        slope_low: Lower end of its two-sided t interval.
        slope_high: Upper end.
        predicted: What it foretells of the held-out points, `[held out]`.
        predicted_low: Lower end of the prediction interval of each.
        predicted_high: Upper end.
        error: Root mean squared error on the held-out points, in the units of y.
        unchanged_error: The same if nothing changed beyond the largest fitted scale.
        foretells: Whether every held-out point is inside its prediction interval, and `error` below `unchanged_error`.
    """

    form: Form
    intercept: float
    slope: float
    slope_low: float
    slope_high: float
    predicted: Array
    predicted_low: Array
    predicted_high: Array
    error: float
    unchanged_error: float
    foretells: bool


def fit_trend(x: npt.ArrayLike, y: npt.ArrayLike, *, form: Form, hold_out: int = 1, confidence: float = 0.95) -> Trend:
    """Fit a trend to the smaller scales and try it on the `hold_out` largest.

    Least squares on the axes of `form`, with t intervals for the slope and for new points.

    Args:
        x: Scales (parameters, tokens, context lengths), positive, each once.
        y: What is measured at each; positive for a power law.
        form: Which line.
        hold_out: How many of the largest scales are not fitted.
        confidence: Of the intervals.

    Raises:
        InputError: If fewer than three scales are left to fit, or a logarithm does not exist.
    """
    scales, heights = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if scales.ndim != 1 or scales.shape != heights.shape or len(np.unique(scales)) != len(scales):
        raise InputError(f"{scales.shape} scales and {heights.shape} values", "give one value for each scale, once")
    fitted = len(scales) - hold_out
    if hold_out < 1 or fitted < 3:
        raise InputError(f"{len(scales)} scales with {hold_out} held out", "hold out at least one and leave three")
    if not (scales > 0).all() or (form == "power" and not (heights > 0).all()):
        raise InputError("a scale or a value is not positive", "a power law needs both positive, log-linear the scales")
    order = np.argsort(scales)
    u, v = np.log(scales[order]), heights[order]
    v = np.log(v) if form == "power" else v
    centre, spread = u[:fitted].mean(), ((u[:fitted] - u[:fitted].mean()) ** 2).sum()
    slope = float(((u[:fitted] - centre) * v[:fitted]).sum() / spread)
    intercept = float(v[:fitted].mean() - slope * centre)
    scatter = math.sqrt(((v[:fitted] - intercept - slope * u[:fitted]) ** 2).sum() / (fitted - 2))
    t = float(special.stdtrit(fitted - 2, (1 + confidence) / 2))
    line = intercept + slope * u[fitted:]
    reach = t * scatter * np.sqrt(1 + 1 / fitted + (u[fitted:] - centre) ** 2 / spread)
    predicted, low, high = (np.exp(z) if form == "power" else z for z in (line, line - reach, line + reach))
    held_out, last = heights[order][fitted:], heights[order][fitted - 1]
    error = float(np.sqrt(((predicted - held_out) ** 2).mean()))
    unchanged = float(np.sqrt(((last - held_out) ** 2).mean()))
    return Trend(
        form=form,
        intercept=intercept,
        slope=slope,
        slope_low=slope - t * scatter / math.sqrt(spread),
        slope_high=slope + t * scatter / math.sqrt(spread),
        predicted=predicted,
        predicted_low=low,
        predicted_high=high,
        error=error,
        unchanged_error=unchanged,
        foretells=bool(((low <= held_out) & (held_out <= high)).all()) and error < unchanged,
    )
