"""Reciprocal rank fusion of two retrievers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval._components import JoinsTwo, joined

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved


class ReciprocalRankFusion(JoinsTwo):
    """A document's score is the sum of 1 / (k + rank) over both rankings; scores themselves do not count."""

    card: ClassVar[MethodCard] = MethodCard(
        id="reciprocal-rank-fusion",
        family="retrieval",
        title="Reciprocal rank fusion",
        summary="Ranks documents by the sum of 1 / (k + rank) over the rankings of two retrievers.",
        paper=Paper(
            key="cormack2009reciprocal",
            title="Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods",
            authors="Cormack, Gordon V. and Clarke, Charles L. A. and Büttcher, Stefan",
            year=2009,
            venue="SIGIR 2009",
            url="https://doi.org/10.1145/1571941.1572114",
        ),
        role="comparator",
        unit="ranking",
        phases=(),
        budgets=(),
        training="weights",
        modes=("executed",),
        nearest="weighted-fusion",
        differs="adds ranks, not scores, and has no weight to tune",
    )

    k: int = Field(default=60, ge=0, description="What is added to every rank.")

    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """Both retrievers, then one ranking."""
        from sparsebench.retrieval.fusion import reciprocal_rank_fusion
        from sparsebench.systems.retrieval import Retrieved

        first, second = self.both(system, collection, depth)
        start = time.perf_counter()
        run = reciprocal_rank_fusion([first.run, second.run], self.k, depth)
        seconds = time.perf_counter() - start
        counted = joined(first.counted, second.counted, {"fuse_query_ms": 1e3 * seconds / len(run.query_ids)})
        return Retrieved(run, counted, {"first": first.facts, "second": self.second.facts(system) | second.facts})
