"""Random tokens: the control at equal density for methods that choose single keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class RandomTokens(AttentionAdapter):
    """Keys drawn at random for each query, head and layer; the query's own is always read."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-tokens",
        family="attention",
        title="Random tokens",
        summary="Keys drawn at random, each layer, head and query by itself, beside the query's own.",
        role="control",
        unit="token",
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        adaptivity="static",
        nearest="random-blocks",
        differs="draws single keys",
    )

    executes: ClassVar[tuple[str, ...]] = ("decode",)

    phase: PhaseKnob = "both"
    seed: int = 0

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import TopTokens

        return TopTokens.within(allowance, view, self._score)

    def _score(self, part: AttentionView) -> torch.Tensor:
        import torch

        from sparsebench.adapters.attention._estimate import uniform

        keys = torch.arange(part.key.shape[2], device=part.query.device)
        heads = torch.arange(part.query.shape[1], device=part.query.device)[:, None, None]
        at = part.positions[:, None, :, None]
        return uniform(self.seed, part.layer, heads, at, keys).masked_fill(keys == at, 1.0)
