"""Random blocks: the control at equal density."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class RandomBlocks(AttentionAdapter):
    """Blocks drawn at random for each block of queries, head and layer; the one on the diagonal is always read."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-blocks",
        family="attention",
        title="Random blocks",
        summary="Blocks of keys drawn at random, each layer, head and block of queries by itself, beside the diagonal.",
        role="control",
        unit="block",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        adaptivity="static",
        nearest="block-topk",
        differs="draws blocks instead of scoring them",
    )

    phase: PhaseKnob = "both"
    block: int = Field(16, ge=1)
    """Queries and keys of a block; in decode a query has pages of so many keys."""
    seed: int = 0

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import by_row

        if not view.decode:
            return by_row(view, lambda row: self._select_row(row, allowance))
        import torch

        from sparsebench.adapters.attention._blocks import choose_pages
        from sparsebench.adapters.attention._estimate import uniform

        device = view.query.device
        pages = torch.arange(-(-view.key.shape[2] // self.block), device=device)
        heads = torch.arange(view.query.shape[1], device=device)[:, None, None]
        score = uniform(self.seed, view.layer, heads, view.positions[:, None, :, None], pages)
        return choose_pages(score, view, allowance, self.block)

    def _select_row(self, row: AttentionView, allowance: Allowance) -> Selection:
        import torch

        from sparsebench.adapters.attention._blocks import block_pairs, choose_blocks, own_blocks
        from sparsebench.adapters.attention._estimate import uniform
        from sparsebench.adapters.attention._selection import Blocks

        device = row.query.device
        start, length = int(row.geometry.positions[0, 0]), row.key.shape[2]
        pairs = block_pairs(start, length - start, row.window, self.block)
        first = start // self.block
        heads = torch.arange(row.query.shape[1], device=device)[:, None, None]
        blocks = torch.arange(pairs.shape[0], device=device)[:, None] + first
        score = uniform(self.seed, row.layer, heads, blocks, torch.arange(pairs.shape[1], device=device))
        forced = own_blocks(pairs, start, self.block)
        return Blocks(choose_blocks(score, pairs, forced, allowance, self.block, length), self.block, first)
