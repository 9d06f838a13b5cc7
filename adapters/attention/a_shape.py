"""A-shape: a block of first tokens and a window, in prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class AShape(AttentionAdapter):
    """First keys, as a share of all that a query reads, and recent ones."""

    card: ClassVar[MethodCard] = MethodCard(
        id="a-shape",
        family="attention",
        title="A-shape",
        summary="In prefill every query reads a block of first keys and a window of recent ones; decode is dense.",
        paper=Paper(
            title="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
            authors="Huiqiang Jiang and Yucheng Li and Chengruidong Zhang and Qianhui Wu and Xufang Luo and others",
            year=2024,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2407.02490",
            key="jiang2024minference",
        ),
        unit="token",
        phases=("prefill",),
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="streaming-llm",
        differs="its first keys are a share of the budget (1 in 32), not four, and decode is dense",
        deviations=("one pattern for all heads; in MInference it is one of three that a search gives to heads",),
    )

    sink_share: float = Field(128 / 4096, ge=0, lt=1)
    """Share of the keys of a query that are first ones; the released setting has 128 and a window of 3,968."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import sink_and_recent

        counts = allowance.counts(view)
        return sink_and_recent(view, counts, (counts * self.sink_share).ceil().long())
