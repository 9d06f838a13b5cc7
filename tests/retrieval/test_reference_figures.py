"""BM25 on two real collections, against figures that were measured before this code was written.

Means over all judged queries, porter stems, Lucene's 33 stop words, title and text joined. Encoders are compared in
`benchmarks/retrieval_parity.py`, which takes minutes.
"""

from __future__ import annotations

import pytest
from models import data_folder

from sparsebench.retrieval.bm25 import BM25, Analyser
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import evaluate
from sparsebench.retrieval.loaders import load_beir
from sparsebench.retrieval.run import Run


def measured(collection: Collection, config: BM25) -> tuple[float, float, float]:
    hits = config.index(collection.documents()).search(collection.queries, 1000)
    run = Run(collection.query_ids, collection.doc_ids, hits)
    means = evaluate(collection, run, ["nDCG@10", "Recall@100", "MAP"]).means()
    return means["nDCG@10"], means["Recall@100"], means["MAP"]


@pytest.mark.parametrize(
    ("config", "figures"),
    [
        (BM25(0.9, 0.4), (0.4948, 0.738, 0.388)),
        (BM25(1.2, 0.75), (0.5227, 0.750, 0.414)),
        (BM25(0.9, 0.4, analyser=Analyser(stemmer=None)), (0.4774, None, None)),
    ],
)
def test_cranfield(config: BM25, figures: tuple[float | None, ...]) -> None:
    collection = load_beir(data_folder("ir/cranfield"), split="test_best5")
    for value, figure in zip(measured(collection, config), figures, strict=True):
        assert figure is None or value == pytest.approx(figure, abs=6e-4)


@pytest.mark.parametrize(
    ("config", "figures"),
    [
        (BM25(0.9, 0.4), (0.4750, 0.6396, 0.3348)),
        (BM25(1.2, 0.75), (0.4941, 0.6660, 0.3440)),
        (BM25(0.9, 0.4, analyser=Analyser(stemmer=None)), (0.4104, 0.6021, 0.2952)),
    ],
)
def test_cacm(config: BM25, figures: tuple[float, ...]) -> None:
    collection = load_beir(data_folder("ir/cacm"))
    assert measured(collection, config) == pytest.approx(figures, abs=6e-5)


def test_what_the_collections_hold() -> None:
    cranfield, cacm = load_beir(data_folder("ir/cranfield"), split="test_best5"), load_beir(data_folder("ir/cacm"))
    assert [cranfield.describe()[key] for key in ("documents", "queries", "judgements")] == [1400, 225, 1837]
    assert [cacm.describe()[key] for key in ("documents", "queries", "judgements")] == [3204, 52, 796]
    assert cranfield.missing_docs == cacm.missing_docs == 0


def test_cranfields_best_documents_decide_its_figures() -> None:
    """225 judgements of grade -1 mean "best": without them BM25 has .344 in place of .495."""
    without, best = (load_beir(data_folder("ir/cranfield"), split=split) for split in ("test", "test_best5"))
    assert sum(grade == 5 for grades in best.qrels.values() for grade in grades.values()) == 225
    assert measured(without, BM25())[0] == pytest.approx(0.344, abs=6e-4)
    assert measured(without, BM25(1.2, 0.75))[0] == pytest.approx(0.360, abs=6e-4)
    binary = load_beir(data_folder("ir/cranfield"), split="test_best5", grade_policy="binary")
    assert measured(binary, BM25())[0] == pytest.approx(0.486, abs=6e-4)
    raw = {
        qid: {doc: -1 if grade == 5 else grade for doc, grade in grades.items()} for qid, grades in best.qrels.items()
    }
    corpus = {
        doc: {"title": title, "text": text}
        for doc, title, text in zip(best.doc_ids, best.titles, best.texts, strict=True)
    }
    queries = dict(zip(best.query_ids, best.queries, strict=True))
    read = Collection.from_dicts("cranfield", corpus, queries, raw, grade_policy="negative_best")
    assert read.content_hash == best.content_hash


def test_dropping_identical_ids_is_wrong_where_ids_are_only_numbers() -> None:
    """Query 1 of Cranfield is no copy of document 1: BEIR's default drops real results."""
    path = data_folder("ir/cranfield")
    kept, dropped = (load_beir(path, split="test_best5", drop_identical_ids=drop) for drop in (False, True))
    assert measured(kept, BM25())[1] != measured(dropped, BM25())[1]


def test_the_fields_decide_the_figures() -> None:
    text = load_beir(data_folder("ir/cranfield"), split="test_best5", field_policy="text")
    assert measured(text, BM25())[0] == pytest.approx(0.4325, abs=6e-5)
