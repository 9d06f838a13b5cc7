"""StreamingLLM: the first tokens and a window of recent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class StreamingLLM(AttentionAdapter):
    """Sinks and recent keys, whatever the input."""

    card: ClassVar[MethodCard] = MethodCard(
        id="streaming-llm",
        family="attention",
        title="StreamingLLM",
        summary="Every query reads the first few keys and the most recent ones; nothing is scored.",
        paper=Paper(
            title="Efficient Streaming Language Models with Attention Sinks",
            authors="Guangxuan Xiao and Yuandong Tian and Beidi Chen and Song Han and Mike Lewis",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2309.17453",
            key="xiao2024streamingllm",
        ),
        unit="token",
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="sliding-window",
        differs="keeps the first `sinks` keys in view of every query",
        deviations=(
            "keys keep their own positions; the paper numbers positions within the cache, which matters beyond the "
            "trained length only",
            "the paper's budget is a number of tokens; a ratio is translated to one for each prompt",
        ),
    )

    phase: PhaseKnob = "both"
    sinks: int = Field(4, ge=0)
    """First keys that every query reads."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import sink_and_recent

        return sink_and_recent(view, allowance.counts(view), self.sinks)
