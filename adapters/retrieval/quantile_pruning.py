"""Static pruning by one threshold."""

from __future__ import annotations

from typing import Any, ClassVar

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.retrieval._static import PAPER, StaticPruning


class QuantilePruning(StaticPruning):
    """The largest weights stay, wherever they are."""

    card: ClassVar[MethodCard] = MethodCard(
        id="quantile-pruning",
        family="retrieval",
        title="Agnostic static pruning",
        summary="Keeps the postings whose weight is above one quantile of all weights.",
        paper=PAPER,
        unit="posting",
        phases=(),
        budgets=("sparsity",),
        training="weights",
        modes=("executed",),
        nearest="document-pruning",
        differs="one threshold over all postings; a document or a list may keep all or nothing",
    )

    def prune(self, documents: Any, share: float) -> Any:
        """See `StaticPruning.prune`."""
        from sparsebench.retrieval.static_pruning import prune_postings

        return prune_postings(documents, share)
