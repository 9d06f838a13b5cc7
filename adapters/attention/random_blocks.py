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
        from sparsebench.adapters.attention._rows import by_start

        if not view.decode:
            return by_start(view, lambda rows: self._select_rows(rows, allowance))
        import torch

        from sparsebench.adapters.attention._blocks import choose_pages
        from sparsebench.adapters.attention._estimate import uniform

        device = view.query.device
        pages = torch.arange(-(-view.key.shape[2] // self.block), device=device)
        heads = torch.arange(view.query.shape[1], device=device)[:, None, None]
        score = uniform(self.seed, view.layer, heads, view.positions[:, None, :, None], pages)
        return choose_pages(score, view, allowance, self.block)

    def _select_rows(self, rows: AttentionView, allowance: Allowance) -> Selection:
        import torch

        from sparsebench.adapters.attention._blocks import Grid, choose_blocks
        from sparsebench.adapters.attention._estimate import uniform
        from sparsebench.adapters.attention._selection import Blocks

        grid, device = Grid.of(rows, self.block), rows.query.device
        heads = torch.arange(rows.query.shape[1], device=device)[:, None, None]
        blocks = torch.arange(grid.pairs.shape[1], device=device)[:, None] + grid.first_block
        score = uniform(self.seed, rows.layer, heads, blocks, torch.arange(grid.pairs.shape[2], device=device))
        chosen = choose_blocks(score.expand(len(grid.pairs), -1, -1, -1), grid, grid.own, allowance)
        return Blocks(chosen, self.block, grid.first_block)
