"""Vector pseudo-relevance feedback, with interpolation before it, after it, both or not at all."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval._components import JoinsTwo, joined
from sparsebench.adapters.retrieval.base import Engine, RetrievalAdapter
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.hits import Hits
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved


class VectorPrf(JoinsTwo):
    """A query moves towards the documents that it found first, and is asked again.

    The first retriever gives the vectors. The second is used only where `interpolate` says so: its ranking is fused
    with that of the first search, from which feedback is taken (`before`), or with that of the second search (`after`).
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="vector-prf",
        family="retrieval",
        title="Vector pseudo-relevance feedback",
        summary="Searches again with each query's vector moved towards those of the documents that it found first.",
        paper=Paper(
            key="li2022interpolate",
            title="To Interpolate or not to Interpolate: PRF, Dense and Sparse Retrievers",
            authors="Li, Hang and Wang, Shuai and Zhuang, Shengyao and Mourad, Ahmed and Ma, Xueguang and Lin, Jimmy "
            "and Zuccon, Guido",
            year=2022,
            venue="SIGIR 2022",
            url="https://arxiv.org/abs/2205.00235",
        ),
        unit="vector",
        phases=(),
        budgets=(),
        training="weights",
        modes=("executed",),
        nearest="weighted-fusion",
        differs="changes the query, not only the ranking",
        deviations=("alpha is given, not tuned; scores are min-max normalised before they are added",),
    )

    form: Literal["average", "rocchio"] = Field(default="average", description="How the query moves.")
    documents: int = Field(default=3, ge=1, description="First documents that give feedback.")
    query_weight: float = Field(default=0.4, ge=0, description="Rocchio: weight of the query.")
    feedback_weight: float = Field(default=0.6, ge=0, description="Rocchio: weight of the feedback.")
    interpolate: Literal["none", "before", "after", "both"] = Field(
        default="none", description="Where the second retriever's ranking comes in."
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight of the second retriever.")

    def retrieve(self, system: EncoderSystem, budget: Budget | None, collection: Collection, depth: int) -> Retrieved:
        """Search, move the queries, search again."""
        from sparsebench.retrieval import fusion
        from sparsebench.retrieval.run import Run
        from sparsebench.systems.retrieval import Retrieved

        other = None
        if self.interpolate != "none":
            other = self.second.retrieve(self.second.system(system), collection, depth)
        method = self._method(system)
        engine = method.engine(system, self.first.at(), collection)

        def ranked(hits: Hits, *where: str) -> Run:
            run = Run(collection.query_ids, collection.doc_ids, hits)
            if other is None or self.interpolate not in where:
                return run
            return fusion.interpolate(other.run, run, self.alpha, depth)

        start = time.perf_counter()
        found = engine.index.search(engine.queries, depth)
        moved = self.moved(engine, ranked(found, "before", "both").hits)
        again = engine.index.search(moved, depth)
        run = ranked(again, "after", "both")
        seconds = time.perf_counter() - start
        counted = {
            **two_searches(method.sizes(engine, found), method.sizes(replace(engine, queries=moved), again)),
            "speed": self._speed(method, engine, moved, collection, depth, seconds),
        }
        facts: dict[str, Any] = {"first": engine.vectors.facts}
        if other is not None:
            counted = joined(counted, other.counted)
            facts["second"] = self.second.facts(system) | other.facts
        return Retrieved(run, counted, facts)

    def moved(self, engine: Engine, hits: Hits) -> Any:
        """The queries after feedback from some hits."""
        from sparsebench.retrieval.feedback import average, rocchio

        if self.form == "average":
            return average(engine.queries, engine.documents, hits, self.documents)
        return rocchio(
            engine.queries,
            engine.documents,
            hits,
            self.documents,
            alpha=self.query_weight,
            beta=self.feedback_weight,
        )

    def _method(self, system: EncoderSystem) -> RetrievalAdapter:
        method = self.first.adapter(system.kind)
        method.check_system(system)
        if not (isinstance(method, RetrievalAdapter) and method.one_vector):
            raise InputError(f"{self.card.id}: {method.card.id} has no single vector a text to move")
        return method

    def _speed(
        self, method: RetrievalAdapter, engine: Engine, moved: Any, collection: Collection, depth: int, seconds: float
    ) -> dict[str, float]:
        """Times of both searches together; moving the queries and fusing count in `queries_per_second` alone."""
        from sparsebench.retrieval.measure import latencies

        speed = method.speed(engine, collection, depth, seconds)
        again = latencies(None, engine.index, collection.queries, moved, depth)
        return {key: value + again.get(key, 0.0) for key, value in speed.items()}


def two_searches(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Counted work of two searches of one index; the reference is the first alone."""
    known = first["flops"] is not None and second["flops"] is not None
    kept = ("flops_dense", "bytes", "bytes_dense", "index bytes in memory", "index bytes on disk")
    sizes = {key: first[key] for key in kept if key in first}
    return {**sizes, "flops": first["flops"] + second["flops"] if known else None}
