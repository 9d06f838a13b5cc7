"""Inference-free learned sparse retrieval: documents are encoded, queries looked up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.learned_sparse import LearnedSparse, splade_vectors
from sparsebench.errors import MissingError

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class InferenceFree(LearnedSparse):
    """A query is its wordpieces, each with a fixed weight: no model is run for it."""

    card: ClassVar[MethodCard] = MethodCard(
        id="inference-free",
        family="retrieval",
        title="Inference-free learned sparse retrieval",
        summary="Searches encoded documents with a query's wordpieces, weighted by a table or not at all.",
        paper=Paper(
            key="geng2024towards",
            title="Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers",
            authors="Geng, Zhichao and Wang, Yiwen and Ru, Dongyu and Yang, Yang",
            year=2024,
            venue="arXiv:2411.04403",
            url="https://arxiv.org/abs/2411.04403",
        ),
        unit="term",
        phases=(),
        budgets=("terms",),
        training="weights",
        modes=("executed",),
        nearest="expansion-off",
        differs="weights of query terms come from a table, not from the encoder",
        deviations=(
            "with an encoder that was trained for encoded queries, as SPLADE is",
            "idf is that of the collection's own wordpieces, not the released table, unless `weights` is `released`",
        ),
    )

    weights: Literal["idf", "binary", "released"] = Field(
        default="idf",
        description="Weights of query terms: idf over the collection, 1, or those of the model folder's idf.json.",
    )

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Documents by the encoder, queries from a table.

        Raises:
            MissingError: The weights are to be those released, and the model has none.
        """
        vectors = splade_vectors(system, collection)
        static = self._query_encoder(system, collection)
        queries = static.encode(collection.queries)
        facts = {"truncated_documents": vectors.facts["truncated_documents"], "query_weights": self.weights}
        return replace(vectors, queries=queries.vectors, query_seconds=queries.seconds, facts=facts, ask=static.encode)

    def encoding(self) -> tuple[Any, ...]:
        """The weights decide what queries are."""
        return (self.card.id, self.weights)

    def _query_encoder(self, system: EncoderSystem, collection: Collection) -> Any:
        import numpy as np

        from sparsebench.retrieval.encoders import StaticQueryEncoder, wordpieces
        from sparsebench.retrieval.sparse_vectors import idf

        encoder = system.encoder
        if self.weights == "binary":
            return StaticQueryEncoder(encoder.tokenizer, np.ones(encoder.terms, dtype=np.float32))
        if self.weights == "idf":
            pieces = wordpieces(encoder.tokenizer, collection.documents(), encoder.terms, encoder.max_length)
            return StaticQueryEncoder(encoder.tokenizer, idf(pieces))
        found = sorted(system.folder.rglob("idf.json")) if system.folder is not None else []
        if len(found) != 1:
            raise MissingError(
                f"{system.ref} has {len(found)} files idf.json, not one", "released weights come with such encoders"
            )
        return StaticQueryEncoder.from_file(encoder.tokenizer, found[0], encoder.terms)
