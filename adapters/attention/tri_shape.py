"""Tri-shape: the A-shape with the last queries of the prompt dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Setting, scaled
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class TriShape(AttentionAdapter):
    """First and recent keys; all keys for the last queries."""

    card: ClassVar[MethodCard] = MethodCard(
        id="tri-shape",
        family="attention",
        title="Tri-shape",
        summary="In prefill queries read first and recent keys, the last queries of the prompt all keys.",
        paper=Paper(
            title="SCBench: A KV Cache-Centric Analysis of Long-Context Methods",
            authors="Yucheng Li and Huiqiang Jiang and Qianhui Wu and Xufang Luo and Surin Ahn and others",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2412.10319",
            key="li2025scbench",
        ),
        unit="token",
        phases=("prefill",),
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="a-shape",
        differs="the last queries of the prompt read all keys",
        deviations=(
            "`scaled` makes fewer last queries dense below 32,768 tokens, in proportion; `paper` always 100",
            "a ratio budget pays for the dense last queries with a smaller window",
        ),
    )

    sink_share: float = Field(128 / 4096, ge=0, lt=1)
    """Share of the keys of a query that are first ones."""
    last: int = Field(100, ge=0)
    """Queries at the end of the prompt that read all keys."""
    setting: Setting = "scaled"

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        import torch

        from sparsebench.adapters.attention._selection import sink_and_recent

        last = [scaled(self.last, length, self.setting) if self.last else 0 for length in view.lengths.tolist()]
        ends = view.positions.max(dim=1, keepdim=True).values + 1
        tail = view.positions >= ends - torch.tensor(last, device=ends.device)[:, None]
        counts = allowance.counts(view, pinned=tail & (view.positions >= 0))
        return sink_and_recent(view, counts, (counts * self.sink_share).ceil().long())
