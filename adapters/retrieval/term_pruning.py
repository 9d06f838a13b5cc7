"""Static pruning, posting list by posting list."""

from __future__ import annotations

from typing import Any, ClassVar

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.retrieval._static import PAPER, StaticPruning


class TermPruning(StaticPruning):
    """Every posting list is cut at one length; the longest lists, which cost a search most, lose most."""

    card: ClassVar[MethodCard] = MethodCard(
        id="term-pruning",
        family="retrieval",
        title="Term-centric static pruning",
        summary="Cuts every posting list after its largest weights at one length, so that a share is left.",
        paper=PAPER,
        unit="posting",
        phases=(),
        budgets=("sparsity",),
        training="weights",
        modes=("executed",),
        nearest="document-pruning",
        differs="cuts the posting lists of terms, not the vectors of documents",
    )

    def prune(self, documents: Any, share: float) -> Any:
        """See `StaticPruning.prune`."""
        from sparsebench.retrieval.static_pruning import prune_terms

        return prune_terms(documents, share)
