"""HiP: a search tree over the keys of each block of queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob, first_layers
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import Cost, ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.attention._tree import SearchBlocks
    from sparsebench.adapters.base import Prepared
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView


class HiP(AttentionAdapter):
    """Chunks of keys are halved again and again; of the halves those whose middle key scores highest go on."""

    card: ClassVar[MethodCard] = MethodCard(
        id="hip",
        family="attention",
        title="HiP",
        summary="For each block of queries chunks of keys are halved, and the halves with the best middle keys halved "
        "again, until the budget is left; first and recent keys are read besides.",
        paper=Paper(
            title="HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning",
            authors="Heejun Lee and Geon Park and Youngwan Lee and Jaduk Suh and Jina Kim and others",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2406.09827",
            key="lee2025hip",
        ),
        unit="token",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="block-topk",
        differs="scores single keys in the middle of ever smaller chunks, and so finds keys in logarithmic time",
        deviations=(
            "each decoded query searches anew; the released code reuses a search for several steps",
            "a quarter of a budget is recent keys and one in 32 first keys",
            "a ratio is met over all layers, the dense first three included: the others read less than it says; layers "
            "count alike, so that a model with windows in some of them realises another ratio",
            "models of fewer than 24 layers have one dense layer in eight, rounded down",
            "the index's bytes are not counted: which keys it reads shows only as it runs",
        ),
    )

    phase: PhaseKnob = "both"
    block: int = Field(32, ge=1)
    """Queries that search together in prefill."""
    leaf: int = Field(2, ge=1)
    """Keys of the smallest chunks."""
    dense: int = Field(3, ge=0)
    """First layers that attend densely."""
    local: float = Field(0.25, ge=0, le=1)
    """Share of the budget that is recent keys."""
    sink_share: float = Field(1 / 32, ge=0, le=1)
    """Share of the budget that is first keys."""

    def dense_layers(self, layers: int) -> frozenset[int]:
        """See `AttentionAdapter.dense_layers`."""
        return first_layers(self.dense, layers)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_start

        return by_start(view, lambda rows: self._select_rows(rows, allowance))

    def _select_rows(self, rows: AttentionView, allowance: Allowance) -> Selection:
        from sparsebench.adapters.attention._tree import Found, search
        from sparsebench.engine.transfer import sent

        knobs = (self.block, self.leaf, self.local, self.sink_share)
        memo, key = rows.geometry.memo, ("hip", *knobs, allowance, rows.window, rows.decode)
        if key not in memo:  # the same in all layers
            blocks, shares = self._blocks(rows, allowance)
            memo[key] = blocks, [sent(part.numpy(), rows.key.device) for part in shares]
        blocks, (own, counts, recent, sinks) = memo[key]
        flops = blocks.search_flops(rows.query.shape[1], rows.query.shape[3], self.leaf)
        return Found(search(rows, blocks, self.leaf), own, counts, recent, sinks, flops)

    def _blocks(self, rows: Any, allowance: Allowance) -> tuple[SearchBlocks, tuple[torch.Tensor, ...]]:
        """What searches together, and what queries read: block, keys, recent and first ones of each; on the host."""
        import torch

        from sparsebench.adapters.attention._tree import Places, blocks_of

        # On the host, where it is known: a device would have to be asked for each number.
        positions = torch.from_numpy(rows.geometry.positions)
        places: Any = Places(positions, rows.window, rows.decode)
        counts = allowance.counts(places)
        recent, sinks = (counts * self.local).ceil().long(), (counts * self.sink_share).ceil().long()
        size = 1 if rows.decode else self.block
        blocks = blocks_of(positions, counts - recent - sinks, rows.window, size, self.leaf)
        return blocks, (blocks.of_query, counts, recent, sinks)

    def _phase_cost(
        self, dense: Cost, shape: ModelShape, span: tuple[int, int], batch: int, budget: Budget | None, phase: str
    ) -> Cost:
        from dataclasses import replace

        found = super()._phase_cost(dense, shape, span, batch, budget, phase)
        if phase not in self.phases() or not span[1] or budget is None:
            return found
        whole = self.dense_layers(shape.layers)
        flops = sum(
            self._search_flops(shape, span, window, budget, phase == "decode")
            for layer, window in enumerate(shape.windows)
            if layer not in whole and window != 0
        )
        return replace(found, index=batch * flops)

    def _search_flops(
        self, shape: ModelShape, span: tuple[int, int], window: int | None, budget: Budget, decode: bool
    ) -> float:
        import torch

        from sparsebench.adapters.attention._allowance import Allowance
        from sparsebench.adapters.attention._tree import Places

        whole = len(self.dense_layers(shape.layers))
        places = Places(torch.arange(span[0], span[0] + span[1])[None], window, decode)
        blocks, _ = self._blocks(places, Allowance.of(budget).beside_dense(shape.layers, whole))
        return blocks.search_flops(shape.heads, shape.head_dim, self.leaf)
