"""Quantiles of scores from one pass over a text, without keeping the scores."""

from __future__ import annotations

import numpy as np
import torch

BINS = 1 << 15
"""One for each non-negative bfloat16 number: a score falls to the next one below it."""


class Distribution:
    """How often each size of a score occurs.

    Of bfloat16 scores nothing is lost; others are known to 0.8 %, between which quantiles are interpolated.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.lossless = True

    def add(self, score: torch.Tensor) -> None:
        """Take scores in, none of them negative."""
        if score.dtype == torch.bfloat16:
            bits = score.cpu().contiguous().view(torch.int16)
        else:
            self.lossless = False
            bits = (score.float().cpu().contiguous().view(torch.int32) >> 16).to(torch.int16)
        self.counts += np.bincount((bits & 0x7FFF).numpy().ravel(), minlength=BINS)

    def threshold(self, share: float) -> float:
        """The number that `share` of the scores do not exceed, as nearly as can be; below 0 where none may go."""
        if share <= 0:
            return -1.0
        total = self.counts.cumsum()
        wanted = share * total[-1]
        place = int(np.searchsorted(total, wanted))
        before = int(total[place - 1]) if place else 0
        if self.lossless:  # all scores of a bin are equal: take it or leave it
            nearer = place if total[place] - wanted <= wanted - before else place - 1
            return _edge(nearer) if nearer >= 0 else -1.0
        within = float(wanted - before) / (int(total[place]) - before)
        return _edge(place) + within * (_edge(place + 1) - _edge(place))


def _edge(place: int) -> float:
    """The smallest number of a bin."""
    return float(np.array([place << 16], dtype=np.uint32).view(np.float32)[0])
