"""What the forms of static pruning share: whole postings of documents go before the index is built."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from sparsebench.adapters.card import Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget

PAPER = Paper(
    key="lassance2023static",
    title="A Static Pruning Study on Sparse Neural Retrievers",
    authors="Lassance, Carlos and Lupart, Simon and Déjean, Hervé and Clinchant, Stéphane and Tonellotto, Nicola",
    year=2023,
    venue="SIGIR 2023",
    url="https://arxiv.org/abs/2304.12702",
)


class StaticPruning(LearnedSparse):
    """Learned sparse vectors with a share of the documents' postings gone; queries stay whole."""

    @abstractmethod
    def prune(self, documents: Any, share: float) -> Any:
        """Documents, sparse [documents, terms], with this share of their postings gone."""

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """Documents pruned; queries as learned-sparse has them."""
        documents, queries = super().sparsify(vectors, None)
        return (documents if budget is None else self.prune(documents, budget.number)), queries
