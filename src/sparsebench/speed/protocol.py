"""How times become ratios: sides in turns, medians with bootstrap intervals, and Amdahl's bound.

A side is a function that does its work once and returns how long it took. Sides take turns within a repetition and
another side begins each repetition, so that a machine that warms up, throttles or is shared slows all sides alike;
ratios are paired by repetition for the same reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sparsebench.errors import InputError

REPETITIONS = 9
"""The fewest repetitions of a published time."""
RESAMPLES = 2000
Time = TypeVar("Time")


def timed(function: Callable[[], object]) -> float:
    """Milliseconds that a function takes on this processor."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def in_turns(sides: Mapping[str, Callable[[], Time]], repetitions: int = REPETITIONS) -> dict[str, list[Time]]:
    """Times of each side, one for each repetition; a first turn warms up and does not count."""
    names = list(sides)
    for name in names:
        sides[name]()
    times: dict[str, list[Time]] = {name: [] for name in names}
    for number in range(repetitions):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(sides[name]())
    return times


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median (percentile method)."""
    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.quantile(np.median(data[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)


def compared(
    times: Mapping[str, Sequence[float]], baseline: str, nominal: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Each side's median, and how many times as fast as the baseline it is.

    Args:
        times: Milliseconds by side, paired by position.
        baseline: The side that the others are compared with.
        nominal: For a side, the ratio if only the work that remains cost time.

    Returns:
        `baseline`, `repetitions`, and `sides`: for each `median_ms`, `interval_ms`, `times_ms`; for all but the
        baseline `ratio` (above 1: faster) and `ratio_interval`, and where it is known `ratio_nominal` and
        `share_of_nominal`.

    Raises:
        InputError: No such baseline, or sides of unequal length.
    """
    if baseline not in times or len({len(values) for values in times.values()}) != 1:
        raise InputError(f"times of {sorted(times)} cannot be compared with {baseline!r}")
    result: dict[str, Any] = {"baseline": baseline, "repetitions": len(times[baseline]), "sides": {}}
    for name, values in times.items():
        side: dict[str, Any] = {
            "median_ms": float(np.median(values)),
            "interval_ms": interval(values),
            "times_ms": list(values),
        }
        if name != baseline:
            ratios = [theirs / ours for theirs, ours in zip(times[baseline], values, strict=True)]
            side |= {"ratio": float(np.median(ratios)), "ratio_interval": interval(ratios)}
            if nominal and name in nominal:
                side |= {"ratio_nominal": nominal[name], "share_of_nominal": side["ratio"] / nominal[name]}
        result["sides"][name] = side
    return result


def amdahl(share: float, ratio: float | None = None) -> float:
    """How many times as fast the whole is when a part with this share of its time becomes `ratio` times as fast.

    Without a ratio the part becomes free: the bound (Amdahl 1967).
    """
    rest = 1 - share + (share / ratio if ratio else 0.0)
    return 1 / rest if rest else float("inf")
