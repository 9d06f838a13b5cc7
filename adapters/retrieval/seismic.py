"""Seismic: approximate learned sparse retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.index import Index


class Seismic(LearnedSparse):
    """Posting lists in blocks; a block is read when its summary promises enough. The budget is of the query's terms."""

    card: ClassVar[MethodCard] = MethodCard(
        id="seismic",
        family="retrieval",
        title="Seismic",
        summary="Reads only blocks of posting lists whose summary promises more than the worst hit so far.",
        paper=Paper(
            key="bruch2024efficient",
            title="Efficient Inverted Indexes for Approximate Retrieval over Learned Sparse Representations",
            authors="Bruch, Sebastian and Nardini, Franco Maria and Rulli, Cosimo and Venturini, Rossano",
            year=2024,
            venue="SIGIR 2024",
            url="https://arxiv.org/abs/2404.18812",
        ),
        unit="term",
        phases=(),
        budgets=("terms",),
        training="weights",
        needs=("pyseismic-lsr (the extra `seismic`)",),
        modes=("executed",),
        nearest="query-pruning",
        differs="searches approximately, and scores what it finds with the whole vectors",
        deviations=("building draws centroids without a seed, so two builds differ a little",),
    )
    approximate: ClassVar[bool] = True

    postings: int = Field(default=3500, ge=1, description="Postings of a list, on average, that are kept.")
    centroid_fraction: float = Field(default=0.1, gt=0, le=1, description="Blocks of a list, as a share of its length.")
    summary_energy: float = Field(default=0.4, gt=0, le=1, description="Share of a block's weight in its summary.")
    heap_factor: float = Field(default=0.9, gt=0, le=1, description="Less skips more blocks.")

    def sparsify(self, vectors: Vectors, budget: Budget | None) -> tuple[Any, Any]:
        """All documents; queries as learned-sparse has them: Seismic cuts them itself."""
        return super().sparsify(vectors, None)

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """Seismic's index, which looks at as many terms of a query as the budget says."""
        from sparsebench.retrieval.seismic import Blocks, SeismicIndex

        cut = None if budget is None else int(budget.value)
        blocks = Blocks(self.postings, self.centroid_fraction, self.summary_energy, cut, self.heap_factor)
        return SeismicIndex(documents, blocks)
