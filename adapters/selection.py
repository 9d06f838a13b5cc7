"""Choosing the smallest entries of scores: exactly so many, and of equal ones those that come first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch


def smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` smallest entries of each row, ties by lowest column.

    Args:
        score: [rows, columns], float32, finite.
        count: 0 to columns.

    Returns:
        Bool [rows, columns], with `count` entries set in each row. What a smaller count sets, a larger one sets too.
    """
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if count >= score.shape[1]:
        return torch.ones_like(score, dtype=torch.bool)
    limit = _kth_smallest(score, count)
    if score.is_cuda:  # to ask whether rows are crowded would be to wait for the answer
        return _first_of_equals(score, limit, count)
    chosen = score <= limit
    crowded = (counts(chosen) > count).nonzero()[:, 0]
    if len(crowded):
        chosen[crowded] = _first_of_equals(score[crowded], limit[crowded], count)
    return chosen


def _kth_smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """The count-th smallest entry of each row, [rows, 1]."""
    if score.device.type == "cpu":  # numpy's partial sort is several times faster than torch's
        parted = np.partition(score.numpy(), count - 1, axis=1)
        return torch.from_numpy(parted[:, count - 1 : count].copy())
    return torch.kthvalue(score, count, dim=1, keepdim=True).values


def _first_of_equals(score: torch.Tensor, limit: torch.Tensor, count: int) -> torch.Tensor:
    below, equal = score < limit, score == limit
    room = count - below.sum(dim=1, keepdim=True)
    return below | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))


def smallest_of_all(scores: Callable[[], Iterable[torch.Tensor]], count: int) -> tuple[float, int]:
    """Where to cut so that `count` entries of many tensors lie below the cut; no two of them are held at a time.

    Args:
        scores: Gives the tensors, float32 and finite, in the same order each time; it is called twice.
        count: At least 1 and at most the number of entries.

    Returns:
        The cut, and how many entries equal to it are still to be taken: the first ones, in the tensors' order.
    """
    bins = 1 << 16
    coarse = sum(
        (torch.bincount(_keys(s) >> 16, minlength=bins) for s in scores()), torch.zeros(bins, dtype=torch.long)
    )
    upper, before = _bin_of(coarse, count)
    fine = torch.zeros(bins, dtype=torch.long)
    for score in scores():
        keys = _keys(score)
        fine += torch.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=bins)
    lower, within = _bin_of(fine, count - before)
    return _value_of((upper << 16) + lower), count - before - within


def _bin_of(histogram: torch.Tensor, count: int) -> tuple[int, int]:
    """The bin in which the count-th entry lies, and the entries in the bins before it."""
    total = histogram.cumsum(0)
    place = int(torch.searchsorted(total, count))
    return place, int(total[place - 1]) if place else 0


def _keys(score: torch.Tensor) -> torch.Tensor:
    """Integers from 0 to 2^32 that are ordered as the float32 entries are, [entries], on the CPU."""
    bits = (score.flatten().cpu() + 0.0).view(torch.int32)  # + 0.0 makes a negative zero a positive one
    return _ordered(bits).long() + (1 << 31)


def _value_of(key: int) -> float:
    return float(_ordered(torch.tensor([key - (1 << 31)], dtype=torch.int32)).view(torch.float32))


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Float bits as integers in the order of the floats, and back: the bits of negative numbers run the other way."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def take_equal(score: torch.Tensor, cut: float, room: int) -> tuple[torch.Tensor, int]:
    """Entries below `cut`, and the first `room` of those equal to it; how much room is left for the tensors to come."""
    below, equal = score < cut, score == cut
    found = int(equal.sum())
    if found > room:
        equal &= (equal.flatten().cumsum(0) <= room).reshape(equal.shape)
    return below | equal, max(0, room - found)


def counts(chosen: torch.Tensor) -> torch.Tensor:
    """Entries set in each row of a bool tensor [rows, columns], int64 [rows]."""
    if chosen.device.type == "cpu":
        return torch.from_numpy(_set_in_rows(chosen.numpy()))
    return chosen.sum(dim=-1)


def zeros(x: torch.Tensor) -> torch.Tensor:
    """Exact zeros in each row of x [rows, columns], int64 [rows]."""
    if x.device.type != "cpu":
        return x.shape[-1] - torch.count_nonzero(x, dim=-1)
    bits = x.contiguous().view(WHOLE[x.element_size()]).numpy()
    return torch.from_numpy(_set_in_rows(np.left_shift(bits, 1) == 0))  # the sign goes: a negative zero is a zero


def at_most(score: torch.Tensor, threshold: float) -> torch.Tensor:
    """`score <= threshold`, bool; on a processor many times as fast.

    Args:
        score: Not negative, without NaN.
        threshold: Rounded to the precision of the score, as the comparison does it.
    """
    if score.device.type != "cpu":
        return score <= threshold
    limit = torch.tensor(threshold, dtype=score.dtype)
    if score.element_size() == 2 and threshold >= 0:
        # The bits of floats that are not negative are ordered as they are.
        score, limit = score.contiguous().view(torch.int16), limit.abs().view(torch.int16)
    elif score.dtype == torch.bfloat16:
        return score <= threshold
    return torch.from_numpy(np.less_equal(score.numpy(), limit.numpy()))


def without(x: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Values with zeros where `gone`, bool of the same shape, is set."""
    if x.device.type != "cpu":
        return x * ~gone
    # Integers are multiplied with flags ten times as fast as halves are, and many times as fast as a mask fills.
    bits: torch.Tensor = x.view(WHOLE[x.element_size()]) * ~gone
    return bits.view(x.dtype)


WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""
_LANES = 255
"""Flags that one byte can count."""


def _set_in_rows(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Flags set in each row of [rows, columns]; eight columns are added at a time, each in a byte of its own."""
    rows, columns = flags.shape
    if columns % 8:
        flags = np.pad(flags, ((0, 0), (0, -columns % 8)))
    words = np.ascontiguousarray(flags).view(np.uint64)
    total = np.zeros(rows, dtype=np.int64)
    for first in range(0, words.shape[1], _LANES):
        sums = np.add.reduce(words[:, first : first + _LANES], axis=1)
        total += sums.view(np.uint8).reshape(rows, 8).sum(axis=1, dtype=np.int64)
    return total
