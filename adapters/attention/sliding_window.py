"""A sliding window: the most recent tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class SlidingWindow(AttentionAdapter):
    """Recent keys only."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sliding-window",
        family="attention",
        title="Sliding window",
        summary="Every query reads the most recent keys; nothing is scored.",
        paper=Paper(
            title="Longformer: The Long-Document Transformer",
            authors="Iz Beltagy and Matthew E. Peters and Arman Cohan",
            year=2020,
            venue="arXiv:2004.05150",
            url="https://arxiv.org/abs/2004.05150",
            key="beltagy2020longformer",
        ),
        role="comparator",
        unit="token",
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="streaming-llm",
        differs="has no sinks: the first keys fall out of view",
        deviations=("put on a model that was trained dense; without dilation and global tokens",),
    )

    phase: PhaseKnob = "both"

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import sink_and_recent

        return sink_and_recent(view, allowance.counts(view), sinks=0)
