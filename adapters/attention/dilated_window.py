"""Dilated windows: recent keys with gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class DilatedWindow(AttentionAdapter):
    """Every second key before a query, so that the same budget reaches twice as far."""

    card: ClassVar[MethodCard] = MethodCard(
        id="dilated-window",
        family="attention",
        title="Dilated window",
        summary="Every query reads recent keys at regular gaps, and with what is left of its budget keys between.",
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
        nearest="sliding-window",
        differs="leaves gaps in the window, and so reaches farther",
        deviations=(
            "an untuned mask: the paper trains with it",
            "all heads of all layers; the paper dilates two heads of the upper layers, in its autoregressive model",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ("decode",)

    phase: PhaseKnob = "both"
    gap: int = Field(2, ge=1)
    """Distance from one key of the window to the next."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import TopTokens

        return TopTokens.within(allowance, view, lambda part: dilated(part, self.gap))


def dilated(part: AttentionView, gap: int) -> torch.Tensor:
    """Which keys a query reads before which, float32 [rows, 1, queries, keys]: those at multiples of the gap first."""
    import torch

    keys = torch.arange(part.key.shape[2], device=part.positions.device)
    apart = part.positions[:, None, :, None] - keys
    return keys.float() + part.key.shape[2] * (apart % gap == 0)
