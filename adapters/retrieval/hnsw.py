"""HNSW: approximate dense retrieval in a graph of near neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.exact_dense import ExactDense

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.index import Index
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved


class Hnsw(ExactDense):
    """A search that holds as many candidates as the budget says (efSearch), and finds no more documents than that."""

    card: ClassVar[MethodCard] = MethodCard(
        id="hnsw",
        family="retrieval",
        title="HNSW",
        summary="Follows links to near neighbours through layers of a graph, and holds the best candidates met.",
        paper=Paper(
            key="malkov2020efficient",
            title="Efficient and Robust Approximate Nearest Neighbor Search Using Hierarchical Navigable Small World "
            "Graphs",
            authors="Malkov, Yu A. and Yashunin, D. A.",
            year=2020,
            venue="IEEE Transactions on Pattern Analysis and Machine Intelligence 42(4)",
            url="https://arxiv.org/abs/1603.09320",
        ),
        unit="vector",
        phases=(),
        budgets=("depth",),
        training="weights",
        needs=("hnswlib (the extra `ann`)",),
        modes=("executed",),
        nearest="exact-dense",
        differs="compares the query with the vectors that a graph leads to, not with all",
        deviations=("built in one thread, so that every build is the same graph",),
    )
    approximate: ClassVar[bool] = True

    links: int = Field(default=16, ge=2, description="Links of a node in each layer above the lowest (M).")
    ef_construction: int = Field(default=200, ge=1, description="Candidates held while building.")
    seed: int = Field(default=0, description="Seed of the layers.")

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """The graph; without a budget it holds as many candidates as documents are asked for, 100 at least."""
        from sparsebench.retrieval.index import HnswGraph, HnswIndex

        beam = 100 if budget is None else int(budget.value)
        return HnswIndex(documents, HnswGraph(self.links, self.ef_construction, beam, self.seed))

    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """Rankings no deeper than the budget: asking for more would hold more candidates than it allows."""
        return super().retrieve(system, budget, collection, depth if budget is None else min(depth, int(budget.value)))
