"""Bi-granular dense retrieval in its untrained form: codes in memory, vectors on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Engine
from sparsebench.adapters.retrieval.exact_dense import ExactDense

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.hits import Hits
    from sparsebench.retrieval.index import Index


class Bidr(ExactDense):
    """Product-quantised codes choose as many candidates as the budget says; their vectors, on disk, rank them."""

    card: ClassVar[MethodCard] = MethodCard(
        id="bidr",
        family="retrieval",
        title="Bi-granular document representation, untrained",
        summary="Chooses candidates by short codes in memory, and ranks them by full vectors read from disk.",
        paper=Paper(
            key="xiao2022progressively",
            title="Progressively Optimized Bi-Granular Document Representation for Scalable Embedding Based Retrieval",
            authors="Xiao, Shitao and Liu, Zheng and Han, Weihao and Zhang, Jianjin and Shao, Yingxia and Lian, Defu "
            "and Li, Chaozhuo and Sun, Hao and Deng, Denvy and Zhang, Liangjie and Zhang, Qi and Xie, Xing",
            year=2022,
            venue="WWW 2022",
            url="https://arxiv.org/abs/2201.05409",
        ),
        unit="vector",
        phases=(),
        budgets=("depth",),
        training="weights",
        modes=("executed",),
        nearest="exact-dense",
        differs="reads the full vectors of candidates only, which codes in memory choose",
        deviations=(
            "no progressive optimisation: codes are the nearest centroids, both tiers are one bi-encoder's vectors",
            "codes are scanned, without an inverted file",
        ),
    )
    approximate: ClassVar[bool] = True

    parts: int = Field(default=48, ge=1, description="Parts of a code, one byte each.")
    bits: int = Field(default=8, ge=1, le=8, description="Bits of a part.")
    seed: int = Field(default=0, description="Seed of the centroids.")

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """Codes and a file; without a budget every vector is read."""
        from sparsebench.retrieval.two_tiers import TwoTierIndex

        candidates = None if budget is None else int(budget.value)
        return TwoTierIndex(documents, candidates, self.parts, self.bits, self.seed)

    def sizes(self, engine: Engine, hits: Hits) -> dict[str, Any]:
        """Both tiers, and what was read of the lower one; codes cost an addition for each part."""
        index: Any = engine.index
        count, dimensions = engine.documents.shape
        tables = 2.0 * dimensions * 2**self.bits
        read = 0 if hits.touched is None else int(hits.touched.sum())
        queries = max(1, len(hits))
        sizes = super().sizes(engine, hits)
        sizes.pop("vectors compared a query", None)
        return {
            **sizes,
            "flops": len(hits) * (tables + count * self.parts) + 2.0 * read * dimensions,
            "vectors read from disk a query": read / queries,
            "pages of 4 KiB read from disk a query": index.pages_read / queries,
        }
