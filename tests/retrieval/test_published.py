"""Published figures are found for the runs that they belong to, and for no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sparsebench import adapters
from sparsebench.retrieval.evaluate import parse_metric
from sparsebench.retrieval.published import beir_name, compare, in_results, published, word

BM25 = adapters.get("bm25").configure({}).config


def test_the_figures_are_those_of_real_methods_knobs_and_metrics() -> None:
    assert len(published()) >= 8
    for one in published():
        method = adapters.get(one.method)
        method.configure(dict(one.knobs))
        assert bool(one.model) == (one.method not in ("bm25", "bm25-fields")) and one.model == one.model.lower()
        for figures in one.figures.values():
            assert figures and all(0 < value < 1 for value in figures.values())
            for metric in figures:
                parse_metric(metric)


def test_figures_from_the_sources_by_hand() -> None:
    """BM25 and MiniLM on SciFact, as Pyserini and MTEB publish them."""
    (bm25,) = compare("scifact", "bm25", BM25, "", {"nDCG@10": 0.6789})
    assert (bm25.published, bm25.word, bm25.source) == (0.6789, "OK", "pyserini")
    (minilm,) = compare(
        "beir-scifact", "exact-dense", {}, "hf:sentence-transformers/all-MiniLM-L6-v2@abc", {"nDCG@10": 0}
    )
    assert minilm.published == pytest.approx(0.645, abs=0.001)
    assert minilm.word == "FAIL" and str(minilm).startswith("FAIL scifact nDCG@10")


@pytest.mark.parametrize(
    ("collection", "method", "knobs", "model"),
    [
        ("cranfield", "bm25", BM25, ""),
        ("scifact", "bm25", {**BM25, "k1": 1.2}, ""),
        ("scifact", "hnsw", {}, "hf:sentence-transformers/all-MiniLM-L6-v2"),
        ("scifact", "exact-dense", {}, "hf:org/other"),
        ("scifact", "exact-dense", {}, ""),
    ],
)
def test_other_runs_have_no_figure(collection: str, method: str, knobs: dict[str, object], model: str) -> None:
    assert compare(collection, method, knobs, model, {"nDCG@10": 0.5}) == []


def test_words_and_names() -> None:
    assert [word(0.5 + d, 0.5) for d in (0.0004, -0.0006, 0.009, 0.011)] == ["OK", "near", "near", "FAIL"]
    assert [beir_name(n) for n in ("BEIR-SciFact", "beir/nq", "Touche2020", "cacm")] == [
        "scifact",
        "nq",
        "webis-touche2020",
        "cacm",
    ]


def test_a_results_folder_is_read(tmp_path: Path) -> None:
    from sparsebench.suite_run import run_suite

    folder = tmp_path / "scifact"
    (folder / "qrels").mkdir(parents=True)
    docs = [{"_id": str(n), "title": "", "text": text} for n, text in enumerate(("sparse matrix", "red tree", "a sea"))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "tree"}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    task = {
        "task": "beir-scifact",
        "version": 1,
        "title": "SciFact",
        "family": "retrieval",
        "type": "retrieval",
        "data": [{"path": str(folder)}],
        "metrics": [{"name": "nDCG@10", "column": "nDCG@10", "headline": True}],
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    suite = {
        "suite": "s",
        "version": 1,
        "systems": {"lexical": {"kind": "lexical"}},
        "grids": [
            {
                "name": "g",
                "system": "lexical",
                "baseline": "",
                "tasks": [str(tmp_path / "task.yaml")],
                "methods": ["bm25", {"method": "bm25", "knobs": {"k1": 1.1}}],
            }
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    outcome = run_suite(str(tmp_path / "suite.yaml"), tmp_path / "out")
    assert outcome.failed == 0
    (found,) = in_results(tmp_path / "out")
    assert (found.collection, found.metric, found.measured, found.word) == ("scifact", "nDCG@10", 1.0, "FAIL")
