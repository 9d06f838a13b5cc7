"""The token oracle: the keys that dense attention weighs most."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.card import MethodCard

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class OracleTokens(AttentionAdapter):
    """The top keys by true weight, for each query and head: a bound for methods that choose keys."""

    card: ClassVar[MethodCard] = MethodCard(
        id="oracle-tokens",
        family="attention",
        title="Oracle tokens",
        summary="Every query reads the keys with its highest attention weights; finding them costs dense scores.",
        role="bound",
        unit="token",
        budgets=("sparsity", "tokens", "coverage"),
        modes=("simulated", "executed"),
        nearest="oracle-blocks",
        differs="chooses single keys",
        deviations=("no cost is charged for knowing the weights: it bounds quality at a density, it saves nothing",),
    )

    executes: ClassVar[tuple[str, ...]] = ("decode",)

    phase: PhaseKnob = "both"

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._estimate import attention_weights
        from sparsebench.adapters.attention._selection import ByQuery, TopTokens, cover_mask
        from sparsebench.engine.attention import scores

        if (coverage := allowance.coverage) is not None:
            return ByQuery(lambda part: cover_mask(attention_weights(part), coverage))
        return TopTokens.within(allowance, view, scores)
