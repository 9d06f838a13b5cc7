"""Impact quantisation: weights of a few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.index import Index


class ImpactQuantisation(LearnedSparse):
    """Document weights are stored, and multiplied, as whole numbers of some bits; queries stay as they are."""

    card: ClassVar[MethodCard] = MethodCard(
        id="impact-quantisation",
        family="retrieval",
        title="Impact quantisation",
        summary="Stores the weights of documents as whole numbers of a few bits, in uniform steps up to the largest.",
        paper=Paper(
            key="mallia2021learning",
            title="Learning Passage Impacts for Inverted Indexes",
            authors="Mallia, Antonio and Khattab, Omar and Suel, Torsten and Tonellotto, Nicola",
            year=2021,
            venue="SIGIR 2021",
            url="https://arxiv.org/abs/2104.12016",
        ),
        unit="bit",
        phases=(),
        budgets=("bits",),
        training="weights",
        modes=("executed",),
        nearest="learned-sparse",
        differs="keeps every posting, and fewer bits of its weight",
        deviations=("weights take whole bytes in memory: fewer than 8 bits save nothing more here",),
    )

    def check_budget(self, budget: Budget | None) -> None:
        """From 1 to 16 bits."""
        super().check_budget(budget)
        if budget is not None and budget.number > 16:
            raise InputError(f"{self.card.id}: {budget.label}", "from 1 to 16 bits are possible")

    def sparsify(self, vectors: Any, budget: Budget | None) -> tuple[Any, Any]:
        """All terms, or those of the queries that `query_terms` keeps."""
        return super().sparsify(vectors, None)

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """An inverted index of whole numbers; of the weights themselves without a budget."""
        from sparsebench.retrieval.index import InvertedIndex
        from sparsebench.retrieval.sparse_vectors import quantise

        if budget is None:
            return InvertedIndex(documents)
        return InvertedIndex(*quantise(documents, int(budget.value)))
