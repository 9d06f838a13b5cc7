"""The control of term budgets: random terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.retrieval.base import RetrievalAdapter, Vectors
from sparsebench.adapters.retrieval.learned_sparse import splade_vectors

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class RandomTerms(RetrievalAdapter):
    """Random terms of each document, or a random share of all postings; smaller budgets keep fewer of the same."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-terms",
        family="retrieval",
        title="Random terms",
        summary="Keeps random non-zero terms of each document's vector, or a random share of all postings.",
        role="control",
        unit="term",
        phases=(),
        adaptivity="static",
        budgets=("terms", "sparsity"),
        training="weights",
        modes=("executed",),
        nearest="learned-sparse",
        differs="which terms are kept does not depend on their weights",
    )

    seed: int = 0

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """The vectors of learned-sparse."""
        return splade_vectors(system, collection)

    def encoding(self) -> tuple[Any, ...]:
        """Shared with learned-sparse."""
        return ("learned-sparse",)

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Random terms of each document."""
        from sparsebench.retrieval.sparse_vectors import keep_random
        from sparsebench.retrieval.static_pruning import prune_random

        if budget is None:
            return vectors.documents, vectors.queries
        if budget.kind == "terms":
            return keep_random(vectors.documents, int(budget.value), self.seed), vectors.queries
        return prune_random(vectors.documents, budget.number, self.seed), vectors.queries
