"""BM25 over fields is the sum of BM25s, and the unified grid meets the methods that it generalises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebench import adapters
from sparsebench.adapters.base import Prepared
from sparsebench.errors import InputError
from sparsebench.retrieval.bm25 import BM25
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.fields import FieldsIndex
from sparsebench.systems.retrieval import EncoderSystem, Retrieved

DOCS = [
    ("Heat transfer", "the flow of heat over a plate at high speed"),
    ("", "shock waves in front of a blunt body, heat and flow"),
    ("Wing flow", ""),
    ("Notes on plates", "bending of thin plates under a load"),
]
QUERIES = ["heat flow", "plates", "wing"]
COLLECTION = Collection.from_dicts(
    "toy",
    {f"d{n}": {"title": title, "text": text} for n, (title, text) in enumerate(DOCS)},
    {f"q{n}": query for n, query in enumerate(QUERIES)},
    {"q0": {"d0": 1}, "q1": {"d3": 1}, "q2": {"d2": 1}},
)


def test_fields_are_scored_apart_and_added_up() -> None:
    titles, texts = [title for title, _ in DOCS], [text for _, text in DOCS]
    index = FieldsIndex(BM25(), [(titles, 2.0), (texts, 1.0)])
    scores = (index.encode_queries(QUERIES) @ index.weights.T).toarray()
    expected = np.zeros((3, 4))
    for field, weight in ((titles, 2.0), (texts, 1.0)):
        places = [n for n, text in enumerate(field) if text]
        alone = BM25().index([field[n] for n in places])
        expected[:, places] += weight * (alone.encode_queries(QUERIES) @ alone.weights.T).toarray()
    assert np.allclose(scores, expected, atol=1e-6) and (scores > 0).any(axis=1).all()


def test_without_titles_it_is_bm25() -> None:
    texts = [text or "wing" for _, text in DOCS]
    fields = FieldsIndex(BM25(), [([""] * 4, 1.0), (texts, 1.0)])
    plain = BM25().index(texts)
    assert np.array_equal(fields.weights.toarray(), plain.weights.toarray())
    with pytest.raises(InputError, match="any field"):
        FieldsIndex(BM25(), [(["", ""], 1.0)])


def found(name: str, system: EncoderSystem, **knobs: Any) -> Retrieved:
    method: Any = adapters.get(name).configure(knobs)
    with method.attach(system, Prepared(), None) as retriever:
        return retriever.retrieve(COLLECTION, 4)


def test_the_adapter_weights_fields() -> None:
    lexical = EncoderSystem("lexical", "lexical", "", None)
    runs = {title: found("bm25-fields", lexical, title=title).run.to_dict() for title in (0.0, 1.0)}
    assert set(runs[0.0]["q2"]) == set() and set(runs[1.0]["q2"]) == {"d2"}


def test_the_adapter_refuses_documents_without_titles() -> None:
    plain = Collection.from_dicts("plain", {"d": {"title": "", "text": "wing"}}, {"q": "wing"}, {"q": {"d": 1}})
    method: Any = adapters.get("bm25-fields").configure({})
    with (
        method.attach(EncoderSystem("lexical", "lexical", "", None), Prepared(), None) as retriever,
        pytest.raises(InputError, match="no document has a title"),
    ):
        retriever.retrieve(plain, 1)


@pytest.fixture(scope="module")
def splade(splade_folder: Path) -> EncoderSystem:
    return EncoderSystem("sparse-encoder", "path:splade", "f", splade_folder)


@pytest.mark.parametrize(
    ("cell", "same", "knobs"),
    [
        ({"query": "mlm", "document": "mlm"}, "learned-sparse", {}),
        ({"query": "mlp", "document": "mlm"}, "expansion-off", {"side": "queries"}),
        ({"query": "mlm", "document": "mlp"}, "expansion-off", {"side": "documents"}),
        ({"query": "mlp", "document": "mlp"}, "expansion-off", {"side": "both"}),
        ({"query": "binary", "document": "mlm"}, "inference-free", {"weights": "binary"}),
        ({"query": "mlm", "document": "expanded-mlp", "expansion": 10_000}, "learned-sparse", {}),
    ],
)
def test_cells_that_have_a_name_of_their_own(
    splade: EncoderSystem, cell: dict[str, Any], same: str, knobs: dict[str, Any]
) -> None:
    ours, theirs = found("unified-lsr", splade, **cell).run.to_dict(), found(same, splade, **knobs).run.to_dict()
    assert ours.keys() == theirs.keys()
    for query, scores in ours.items():
        assert scores == pytest.approx(theirs[query], rel=1e-5)


def test_expansion_adds_so_many_terms(splade: EncoderSystem) -> None:
    none, some = (
        found("unified-lsr", splade, query="mlm", document=document, **knobs).counted["terms a document"]
        for document, knobs in (("mlp", {}), ("expanded-mlp", {"expansion": 5}))
    )
    assert some == pytest.approx(none + 5)
