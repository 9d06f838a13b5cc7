"""MUVERA: candidates for late interaction by one vector a text, in place of token by token."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.late_interaction import LateInteraction, token_vectors

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class Muvera(LateInteraction):
    """Fixed-dimensional encodings choose as many candidates as the budget says; Chamfer similarity ranks them."""

    card: ClassVar[MethodCard] = MethodCard(
        id="muvera",
        family="retrieval",
        title="MUVERA",
        summary="Chooses candidates by inner products of fixed-dimensional encodings, and ranks them token by token.",
        paper=Paper(
            key="dhulipala2024muvera",
            title="MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings",
            authors="Dhulipala, Laxman and Hadian, Majid and Jayaram, Rajesh and Lee, Jason and Mirrokni, Vahab",
            year=2024,
            venue="NeurIPS 2024",
            url="https://arxiv.org/abs/2405.19504",
        ),
        unit="document",
        phases=(),
        budgets=("depth",),
        training="weights",
        modes=("executed",),
        nearest="late-interaction",
        differs="chooses candidates by encodings of the token vectors, not by sentence vectors",
        deviations=(
            "token vectors of a bi-encoder that was not trained for late interaction",
            "encodings are searched exactly and are not product-quantised",
        ),
    )

    repetitions: int = Field(default=20, ge=1, description="Divisions of space.")
    planes: int = Field(default=5, ge=0, le=16, description="Hyperplanes of a division (k_sim).")
    projection: int | None = Field(default=16, ge=1, description="Dimensions of a bucket; the vectors' own when None.")
    seed: int = Field(default=0, description="Seed of hyperplanes and projections.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Token vectors, and the encodings made of them in the place of sentence vectors."""
        from sparsebench.retrieval.late_interaction import Staged
        from sparsebench.retrieval.muvera import FixedDimensional

        vectors = token_vectors(system, collection)
        documents, queries = vectors.documents.fine, vectors.queries.fine
        form = FixedDimensional(documents.dimensions, self.repetitions, self.planes, self.projection, self.seed)

        def ask(texts: Any) -> Any:
            return form.queries(system.encoder.encode_query_tokens(texts).vectors.fine)

        start = time.perf_counter()
        encoded = form.documents(documents)
        made = time.perf_counter()
        asked = form.queries(queries)
        return replace(
            vectors,
            documents=Staged(encoded, documents),
            queries=Staged(asked, queries),
            document_seconds=vectors.document_seconds + made - start,
            query_seconds=vectors.query_seconds + time.perf_counter() - made,
            facts={**vectors.facts, "encoding_dimensions": form.size},
            ask=ask,
        )

    def encoding(self) -> tuple[Any, ...]:
        """All knobs."""
        return (self.card.id, *sorted(self.config.items()))
