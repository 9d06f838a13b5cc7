"""Pages that are kept for several decoded tokens beside heads that stream, and how heads that stream are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.attention._allowance import Allowance
from sparsebench.adapters.attention._blocks import choose_pages
from sparsebench.adapters.attention._estimate import attention_weights, grouped
from sparsebench.adapters.attention._extremes import page_bounds
from sparsebench.adapters.attention._rows import SLICE, part_of
from sparsebench.adapters.attention._selection import Pages, Selection, SinkAndRecent, sink_and_recent
from sparsebench.adapters.attention.lserve import first_keys
from sparsebench.engine.attention import AttentionPolicy, AttentionView, attend_dense

if TYPE_CHECKING:
    from sparsebench.adapters.attention.lserve import LServe
    from sparsebench.adapters.base import Prepared


@dataclass(frozen=True)
class StreamingAndPages:
    """First and recent keys for heads that stream, pages for the others.

    Attributes:
        streams: Which query heads stream, bool [heads].
        narrow: What those read.
        pages: What the others read.
    """

    streams: torch.Tensor
    narrow: SinkAndRecent
    pages: Selection
    index_flops: float = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        return torch.where(self.streams[:, None, None], self.narrow.keep(part, first), self.pages.keep(part, first))


class KeptPages:
    """Chooses pages at every few tokens and remembers the last choice of each sequence."""

    def __init__(self, method: LServe, prepared: Prepared) -> None:
        self.method = method
        self.streams: dict[int, torch.Tensor] = prepared.state

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """See `Selector`."""

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        streams = self.streams[view.layer]
        thin, wide = self.method.shares(allowance, float(streams.float().mean()))
        counts = thin.counts(view)
        narrow = sink_and_recent(view, counts, first_keys(counts))
        chosen = choose_pages(self._bounds(view), view, wide, self.method.page).chosen
        pages = Pages(self._kept(view, chosen), self.method.page)
        return StreamingAndPages(streams.repeat_interleave(view.group), narrow, pages)

    def _bounds(self, view: AttentionView) -> torch.Tensor:
        """The best bound of a part of each page, [rows, heads, queries, pages]."""
        bounds = page_bounds(view, self.method.part)
        parts = self.method.page // self.method.part
        padded = torch.nn.functional.pad(bounds, (0, -bounds.shape[-1] % parts), value=-torch.inf)
        return padded.reshape(*padded.shape[:-1], -1, parts).amax(dim=-1)

    def _kept(self, view: AttentionView, chosen: torch.Tensor) -> torch.Tensor:
        """For each query the pages that were chosen last, and its own; writes the last choice to the rows' states."""
        kept = chosen.clone()
        every, key = self.method.every, ("lserve", view.layer)
        for row, positions in enumerate(view.positions.tolist()):
            real = [i for i, position in enumerate(positions) if position >= 0]
            if not real:
                continue
            last = self._before(view, row, positions[real[0]], chosen)
            for i in real:
                if last is None or positions[i] % every == 0:
                    last = chosen[row, :, i]
                kept[row, :, i] = last
                kept[row, :, i, positions[i] // self.method.page] = True
            if last is not None:
                view.states[row][-1][key] = (positions[real[-1]] + 1, last)
        return kept

    def _before(self, view: AttentionView, row: int, start: int, chosen: torch.Tensor) -> torch.Tensor | None:
        """The choice that is in force before the first query of a row, bool [heads, pages]; None: there is none."""
        for memory in reversed(view.states[row]):
            end, last = memory.get(("lserve", view.layer), (-1, None))
            if last is not None and end == start:
                width = chosen.shape[-1] - last.shape[-1]
                return torch.nn.functional.pad(last, (0, width)) if width >= 0 else last[:, : chosen.shape[-1]]
        return None


class LostMass:
    """Attends as before, and adds up what each key head's attention loses under first and recent keys.

    Args:
        inner: What attends; None: dense attention.
        width: First and recent keys that a query reads.
        first: How many of so many keys are first ones.
    """

    def __init__(
        self, inner: AttentionPolicy | None, width: int, first: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.inner = inner
        self.width = width
        self.first = first
        self.sums: dict[int, torch.Tensor] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        queries = view.query.shape[2]
        counts = torch.full_like(view.positions, self.width)
        near = sink_and_recent(view, counts, self.first(counts))
        lost = torch.zeros(view.query.shape[1], dtype=torch.float64, device=view.query.device)
        for first in range(0, queries, SLICE):
            part = part_of(view, first, min(first + SLICE, queries))
            weights = attention_weights(part)
            lost += (weights * ~near.keep(part, first)).sum(dim=(0, 2, 3))
        own = grouped(lost, view.group).mean(dim=1)
        self.sums[view.layer] = self.sums.get(view.layer, 0) + own
        return self.inner.attend(view) if self.inner is not None else attend_dense(view)
