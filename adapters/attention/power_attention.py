"""PowerAttention: blocks at distances that are powers of two."""

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


class PowerAttention(AttentionAdapter):
    """The own block, blocks 1, 2, 4, 8 ... before it and the first one; what is left goes to recent keys."""

    card: ClassVar[MethodCard] = MethodCard(
        id="power-attention",
        family="attention",
        title="PowerAttention",
        summary="Every query reads blocks at distances that are powers of two, the first block and recent keys, so "
        "that what a token can know doubles with each layer.",
        paper=Paper(
            title="PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention",
            authors="Lida Chen and Dong Xu and Chenxin An and Xintao Wang and Yikai Zhang and others",
            year=2025,
            venue="arXiv:2503.03588",
            url="https://arxiv.org/abs/2503.03588",
            key="chen2025powerattention",
        ),
        unit="block",
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="streaming-llm",
        differs="spends part of the window on blocks at doubling distances",
        deviations=(
            "an untuned mask: the paper trains with it",
            "blocks of 16, so that several distances fit into a short prompt",
            "where a query's budget does not hold all of its blocks, the farthest are left out, the first block last",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ("decode",)

    phase: PhaseKnob = "both"
    block: int = Field(16, ge=1)
    """Keys of a block."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import TopTokens

        return TopTokens.within(allowance, view, lambda part: precedence(part, self.block))


def precedence(part: AttentionView, size: int) -> torch.Tensor:
    """Which keys a query reads before which, float32 [rows, 1, queries, keys].

    Its own key, the first block, blocks at powers of two and its own by recency, all others by recency.
    """
    import torch

    at = part.positions[:, None, :, None]
    keys = torch.arange(part.key.shape[2], device=at.device)
    apart = at // size - keys // size
    power = (apart >= 0) & ((apart & (apart - 1)) == 0)  # 0, 1, 2, 4, 8 ...
    length = float(part.key.shape[2])
    score = keys.float() + length * power.float()
    score = torch.where(keys < size, score + 2 * length, score)
    return torch.where(keys == at, 4 * length, score)
