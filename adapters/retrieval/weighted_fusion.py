"""Weighted fusion of two retrievers: the convex combination of their scores."""

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


class WeightedFusion(JoinsTwo):
    """A document's score is alpha times that of the second plus 1 - alpha times that of the first, each min-max."""

    card: ClassVar[MethodCard] = MethodCard(
        id="weighted-fusion",
        family="retrieval",
        title="Weighted fusion",
        summary="Ranks documents by the weighted sum of the min-max normalised scores of two retrievers.",
        paper=Paper(
            key="bruch2023analysis",
            title="An Analysis of Fusion Functions for Hybrid Retrieval",
            authors="Bruch, Sebastian and Gai, Siyu and Ingber, Amir",
            year=2023,
            venue="ACM Transactions on Information Systems 42(1)",
            url="https://arxiv.org/abs/2210.11934",
        ),
        role="comparator",
        unit="ranking",
        phases=(),
        budgets=(),
        training="weights",
        modes=("executed",),
        nearest="reciprocal-rank-fusion",
        differs="adds scores, which are brought to one scale query by query",
        deviations=("alpha is given, not tuned; tune it on other queries than those that are reported",),
    )

    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight of the second retriever.")

    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """Both retrievers, then one ranking."""
        from sparsebench.retrieval.fusion import interpolate
        from sparsebench.systems.retrieval import Retrieved

        first, second = self.both(system, collection, depth)
        start = time.perf_counter()
        run = interpolate(second.run, first.run, self.alpha, depth)
        seconds = time.perf_counter() - start
        counted = joined(first.counted, second.counted, {"fuse_query_ms": 1e3 * seconds / len(run.query_ids)})
        return Retrieved(run, counted, {"first": first.facts, "second": self.second.facts(system) | second.facts})
