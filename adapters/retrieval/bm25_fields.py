"""BM25 over title and text as fields of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.retrieval.base import Vectors
from sparsebench.adapters.retrieval.bm25 import Bm25
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem


class Bm25Fields(Bm25):
    """The weighted sum of BM25 over titles and over texts, each field with its own lengths and frequencies."""

    card: ClassVar[MethodCard] = MethodCard(
        **{
            **Bm25.card.model_dump(),
            "id": "bm25-fields",
            "title": "BM25 over fields",
            "summary": "Adds up the BM25 scores of a document's title and of its text, each an index of its own.",
            "nearest": "bm25",
            "differs": "scores title and text apart; a term's frequency and a field's length count in their field",
        }
    )

    title: float = Field(default=1.0, ge=0, description="Weight of the title's score.")
    text: float = Field(default=1.0, ge=0, description="Weight of the text's score.")

    def encode(self, system: EncoderSystem, collection: Collection) -> Vectors:
        """Weights of every term in every field; counts of the query's terms, times the fields' weights.

        Raises:
            InputError: No document has a title, or none has a term in any field that counts.
        """
        from sparsebench.retrieval.bm25 import BM25, Analyser
        from sparsebench.retrieval.fields import FieldsIndex

        if not any(collection.titles):
            raise InputError(f"bm25-fields on {collection.name}: no document has a title", "bm25 is the same there")
        start = time.perf_counter()
        config = BM25(self.k1, self.b, self.method, Analyser(self.stemmer, self.stopwords))
        fields = ((collection.titles, self.title), (collection.texts, self.text))
        index = FieldsIndex(config, [field for field in fields if field[1] > 0])
        indexed = time.perf_counter()
        queries = index.encode_queries(collection.queries)
        facts = {"bm25": config.describe(), "fields": {"title": self.title, "text": self.text}}
        seconds = (indexed - start, time.perf_counter() - indexed)
        return Vectors(index.weights, queries, *seconds, facts, index.encode_queries)
