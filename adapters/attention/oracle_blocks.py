"""The block oracle: the blocks that receive most of dense attention."""

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


class OracleBlocks(AttentionAdapter):
    """The top blocks, in decode pages, by true attention mass: a bound for methods that choose them."""

    card: ClassVar[MethodCard] = MethodCard(
        id="oracle-blocks",
        family="attention",
        title="Oracle blocks",
        summary="Blocks of keys by the attention that a block of queries (in decode: a query) gives them.",
        role="bound",
        unit="block",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="oracle-tokens",
        differs="chooses whole blocks",
        deviations=("no cost is charged for knowing the weights: it bounds quality at a density, it saves nothing",),
    )

    phase: PhaseKnob = "both"
    block: int = Field(16, ge=1)
    """Queries and keys of a block; in decode a query has pages of so many keys."""

    def prefix_invariant(self) -> bool:
        """In prefill a block of queries decides together; in decode each query by itself."""
        return self.phases() == ("decode",)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._blocks import choose_pages
        from sparsebench.adapters.attention._estimate import attention_weights, block_sums
        from sparsebench.adapters.attention._rows import by_start

        if not view.decode:
            return by_start(view, lambda rows: self._select_rows(rows, allowance))
        return choose_pages(block_sums(attention_weights(view), self.block, 3), view, allowance, self.block)

    def _select_rows(self, rows: AttentionView, allowance: Allowance) -> Selection:
        from sparsebench.adapters.attention._blocks import Grid, block_mass, choose_blocks
        from sparsebench.adapters.attention._selection import Blocks

        grid = Grid.of(rows, self.block)
        chosen = choose_blocks(block_mass(rows, self.block), grid, grid.own, allowance)
        return Blocks(chosen, self.block, grid.first_block)
