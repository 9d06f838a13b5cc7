"""Late interaction: every token of the query finds its best token in a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Engine, RetrievalAdapter, Vectors, remembered

if TYPE_CHECKING:
    from sparsebench.budget import Budget
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.hits import Hits
    from sparsebench.retrieval.index import Index
    from sparsebench.systems.retrieval import EncoderSystem


class LateInteraction(RetrievalAdapter):
    """Chamfer similarity of token vectors: over all documents, or over the first of the single-vector ranking."""

    card: ClassVar[MethodCard] = MethodCard(
        id="late-interaction",
        family="retrieval",
        title="Late interaction (MaxSim)",
        summary="Adds up the largest inner product of each of the query's tokens with any of a document's.",
        paper=Paper(
            key="khattab2020colbert",
            title="ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT",
            authors="Khattab, Omar and Zaharia, Matei",
            year=2020,
            venue="SIGIR 2020",
            url="https://arxiv.org/abs/2004.12832",
        ),
        role="comparator",
        unit="document",
        phases=(),
        budgets=("depth",),
        training="weights",
        modes=("executed",),
        nearest="exact-dense",
        differs="compares token vectors, not one vector a text",
        deviations=("token vectors of a bi-encoder that was not trained for late interaction",),
    )
    accepts: ClassVar[tuple[str, ...]] = ("dense-encoder",)
    one_vector: ClassVar[bool] = False
    approximate: ClassVar[bool] = True

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Sentence and token vectors of documents and queries."""
        return token_vectors(system, collection)

    def encoding(self) -> tuple[Any, ...]:
        """Nothing of it is the method's own."""
        return ("late-interaction",)

    def exact_encoding(self) -> tuple[Any, ...]:
        """Token vectors alone, whatever chooses candidates."""
        return ("late-interaction",)

    def index(self, documents: Any, budget: Budget | None) -> Index:
        """All documents, or as many candidates by their sentence vectors as the budget says."""
        from sparsebench.retrieval.late_interaction import ChamferIndex

        return ChamferIndex(documents, None if budget is None else int(budget.value))

    def exact(self, documents: Any) -> Index:
        """Every document a candidate."""
        from sparsebench.retrieval.late_interaction import ChamferIndex

        return ChamferIndex(documents)

    def sizes(self, engine: Engine, hits: Hits) -> dict[str, Any]:
        """Token vectors compared, and the coarse ones."""
        from sparsebench.retrieval.late_interaction import chamfer_sizes

        index: Any = engine.index
        return chamfer_sizes(engine.documents, engine.queries, index, hits)


def token_vectors(system: EncoderSystem, collection: Collection) -> Vectors:
    """Sentence and token vectors by one bi-encoder, computed once for all methods."""

    def encode() -> Vectors:
        encoder = system.encoder
        documents = encoder.encode_document_tokens(collection.documents())
        queries = encoder.encode_query_tokens(collection.queries)
        facts = {
            "truncated_documents": documents.truncated,
            "truncated_queries": queries.truncated,
            "tokens a document": len(documents.vectors.fine.vectors) / len(documents.vectors),
        }
        ask = encoder.encode_query_tokens
        return Vectors(documents.vectors, queries.vectors, documents.seconds, queries.seconds, facts, ask)

    vectors: Vectors = remembered(system, collection, ("tokens",), encode)
    return vectors
