"""S2-Attention: recent keys, and for each head other blocks of the rest."""

from __future__ import annotations

from dataclasses import dataclass
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


class S2Attention(AttentionAdapter):
    """Strided blocks that are shifted from head to head, so that the heads together see the whole context."""

    card: ClassVar[MethodCard] = MethodCard(
        id="s2-attention",
        family="attention",
        title="S2-Attention",
        summary="Every query reads recent keys and every eighth block of the others, a head's blocks beside the next "
        "head's, so that the heads together read all.",
        paper=Paper(
            title="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads",
            authors="Xihui Lin and Yunan Zhang and Suyu Ge and Barun Patra and Vishrav Chaudhary and others",
            year=2024,
            venue="arXiv:2407.17678",
            url="https://arxiv.org/abs/2407.17678",
            key="lin2024s2attention",
        ),
        unit="block",
        adaptivity="static",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="power-attention",
        differs="spreads its blocks evenly, and other ones for each head",
        deviations=(
            "an untuned mask: the paper trains with it, and leaves some layers dense",
            "blocks of 16, so that several strides fit into a short prompt; the paper's have 64",
            "a third of a budget is recent keys, which is the share that the released setting has at 32,768 tokens; "
            "strided blocks that do not fit are left out from the farthest on; room that they leave is recent keys'",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ("decode",)

    phase: PhaseKnob = "both"
    block: int = Field(16, ge=1)
    """Keys of a block."""
    stride: int = Field(8, ge=1)
    """Of so many blocks a head reads one."""
    local: float = Field(1 / 3, ge=0, le=1)
    """Share of the budget that goes to recent keys first."""

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        return LocalAndStrided(allowance.counts(view), self.local, self.block, self.stride)


@dataclass(frozen=True)
class LocalAndStrided:
    """Recent keys, then one block in `stride`, then what lies between, each by recency.

    Attributes:
        counts: Keys that each query reads, [rows, queries].
        local: Share of them that is recent in any case.
        block: Keys of a block.
        stride: Head h reads the blocks b with (b + h) divisible by it.
    """

    counts: torch.Tensor
    local: float
    block: int
    stride: int
    index_flops: float = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        import torch

        from sparsebench.adapters.attention._selection import top_mask

        counts = self.counts[:, None, first : first + part.query.shape[2]]
        length = part.key.shape[2]
        keys = torch.arange(length, device=counts.device)
        heads = torch.arange(part.query.shape[1], device=counts.device)[:, None, None]
        recent = (counts * self.local).ceil().long()[..., None]
        near = keys > part.positions[:, None, :, None] - recent
        strided = (keys // self.block + heads) % self.stride == 0
        score = keys.float() + length * torch.where(near, 2.0, strided.float())
        return top_mask(score.masked_fill(~part.visible(), -torch.inf), counts)
