"""Static pruning, document by document."""

from __future__ import annotations

from typing import Any, ClassVar

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.retrieval._static import PAPER, StaticPruning


class DocumentPruning(StaticPruning):
    """Every document keeps equally many of its largest terms; short documents stay whole."""

    card: ClassVar[MethodCard] = MethodCard(
        id="document-pruning",
        family="retrieval",
        title="Document-centric static pruning",
        summary="Keeps as many of its largest terms for every document as a share of all postings allows.",
        paper=PAPER,
        unit="posting",
        phases=(),
        budgets=("sparsity",),
        training="weights",
        modes=("executed",),
        nearest="learned-sparse",
        differs="is given a share of all postings, not a number of terms",
    )

    def prune(self, documents: Any, share: float) -> Any:
        """See `StaticPruning.prune`."""
        from sparsebench.retrieval.static_pruning import prune_documents

        return prune_documents(documents, share)
