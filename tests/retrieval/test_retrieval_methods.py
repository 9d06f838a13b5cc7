"""Every retrieval method on released encoders and a real collection of some sixty documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebench import adapters
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.retrieval.base import RankingAdapter
from sparsebench.budget import Budget
from sparsebench.errors import InputError, IntegrityError, MissingError, UnknownNameError
from sparsebench.retrieval import fusion, measure
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.feedback import average, rocchio
from sparsebench.retrieval.index import DenseIndex
from sparsebench.retrieval.run import Run
from sparsebench.systems.retrieval import EncoderSystem, Retrieved

DEPTH = 40
METHODS = [card.id for card in adapters.cards("retrieval")]
FULL = {"terms": 30522, "depth": 10_000, "sparsity": 0.0, "bits": 16}
"""Budgets under which nothing is left out."""
SMALL: dict[str, list[Any]] = {"terms": [16, 4], "depth": [30, 5], "sparsity": [0.5, 0.9], "bits": [8, 1]}


@dataclass(frozen=True)
class Systems:
    """One system of each kind, and the collection."""

    by_kind: dict[str, EncoderSystem]
    collection: Collection
    runs: dict[str, Retrieved] = field(default_factory=dict)

    def of(self, method: RankingAdapter) -> EncoderSystem:
        """The system that a method runs on; a dense one where it takes any."""
        kind = "dense-encoder" if "dense-encoder" in method.accepts else method.accepts[0]
        return self.by_kind[kind]

    def run(self, name: str, budget: Budget | None = None, system: str = "", **knobs: Any) -> Retrieved:
        """What a method finds."""
        if name in ("hnsw",):
            pytest.importorskip("hnswlib")
        if name == "seismic":
            pytest.importorskip("seismic")
        key = repr((name, budget, system, knobs))
        if key not in self.runs:
            method: Any = adapters.get(name).configure(knobs)
            with method.attach(self.by_kind.get(system) or self.of(method), Prepared(), budget) as retriever:
                self.runs[key] = retriever.retrieve(self.collection, DEPTH)
        return self.runs[key]


def titled(text: str) -> dict[str, str]:
    """A document whose title and text, joined by a space, are `text`."""
    title, _, rest = text.partition(" ")
    return {"title": title, "text": rest}


@cache
def collection() -> Collection:
    """Documentation: 60 documents, the first word of each its title, and the 12 queries that look for some of them."""
    from sparsebench.data.embedded.docs_collection import collection as documentation

    whole = documentation()
    chosen = list(whole.queries)[:12]
    wanted = {doc for query in chosen for doc in whole.qrels[query]}
    docs = sorted(wanted | set(list(whole.corpus)[:60]))
    return Collection.from_dicts(
        "documentation",
        {doc: titled(whole.corpus[doc]["text"]) for doc in docs},
        {query: whole.queries[query] for query in chosen},
        {query: whole.qrels[query] for query in chosen},
    )


@pytest.fixture(scope="module")
def systems(splade_folder: Path, minilm_folder: Path) -> Systems:
    systems = [
        EncoderSystem("sparse-encoder", "splade", "s", splade_folder),
        EncoderSystem("dense-encoder", "minilm", "d", minilm_folder),
        EncoderSystem("lexical", "lexical", "", None, ""),
    ]
    return Systems({system.kind: system for system in systems}, collection())


@pytest.fixture(scope="module", autouse=True)
def _few_are_timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "TIMED_QUERIES", 2)
        yield


def same(first: Retrieved, second: Retrieved, tolerance: float = 0.0) -> bool:
    hits = first.run.hits, second.run.hits
    if not np.array_equal(hits[0].docs, hits[1].docs):
        return False
    return bool(np.allclose(hits[0].scores, hits[1].scores, rtol=tolerance, atol=tolerance))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_ranks_every_query_and_says_what_that_took(systems: Systems, name: str) -> None:
    found = systems.run(name)
    run, counted = found.run, found.counted
    assert run.query_ids == systems.collection.query_ids and run.doc_ids == systems.collection.doc_ids
    for query in range(len(run.hits)):
        docs, scores = run.hits.row(query)
        assert 0 < len(docs) <= DEPTH and len(set(docs.tolist())) == len(docs)
        assert np.all(np.diff(scores) <= 0)
    assert counted["bytes"] > 0 and counted["bytes_dense"] > 0 and counted["flops_dense"] > 0
    assert counted["index bytes in memory"] == counted["bytes"]
    speed = counted["speed"]
    assert {"encode_documents_s", "build_index_s", "queries_per_second"} <= set(speed)
    assert {"encode_query_ms_1_thread", "search_query_ms_1_thread"} <= set(speed)
    assert all(value > 0 for value in speed.values())
    assert found.facts["depth"] == DEPTH
    assert found.facts["collection"]["content_hash"] == systems.collection.content_hash


@pytest.mark.parametrize("name", METHODS)
def test_a_full_budget_leaves_nothing_out(systems: Systems, name: str) -> None:
    if name == "seismic":
        pytest.skip("its builds differ from one another")
    for kind in adapters.get(name).card.budgets:
        if kind == "bits":
            assert same(systems.run(name), systems.run(name, Budget(kind, 16)), tolerance=1e-3)
        else:
            assert same(systems.run(name), systems.run(name, Budget(kind, FULL[kind])))


@pytest.mark.parametrize("name", [name for name in METHODS if adapters.get(name).card.budgets])
def test_smaller_budgets_cost_less(systems: Systems, name: str) -> None:
    for kind in adapters.get(name).card.budgets:
        whole, *fewer = (systems.run(name, b).counted for b in (None, *(Budget(kind, v) for v in SMALL[kind])))
        for counted in fewer:
            if kind == "bits":
                assert counted["bytes"] < whole["bytes"] and counted["flops"] == whole["flops"]
            elif counted["flops"] is None:
                assert counted["recall@10 of exact search"] <= 1
            else:
                assert counted["flops"] < whole["flops"]
        if kind == "sparsity":
            for counted, share in zip(fewer, SMALL[kind], strict=True):
                assert counted["sparsity"] == pytest.approx(share, abs=1e-3)
                assert counted["bytes"] < whole["bytes"]


@pytest.mark.parametrize("name", [name for name in METHODS if getattr(adapters.get(name), "approximate", False)])
def test_recall_of_the_exact_ranking_is_counted_and_falls_with_the_budget(systems: Systems, name: str) -> None:
    (kind,) = adapters.get(name).card.budgets
    recall = [
        systems.run(name, budget).counted["recall@10 of exact search"]
        for budget in (None, *(Budget(kind, value) for value in SMALL[kind]))
    ]
    assert recall[0] > 0.9
    assert 0 < recall[2] <= recall[1] <= recall[0] + 1e-9


def test_vectors_are_computed_once_and_never_changed(systems: Systems) -> None:
    """All pruning works on the one set of vectors; the plain ranking is the same before and after."""
    system = systems.by_kind["sparse-encoder"]
    before = systems.run("learned-sparse")
    encode = system.encoder.encode
    system.encoder.encode = lambda *_: pytest.fail("encoded again")
    try:
        for name in ("document-pruning", "term-pruning", "quantile-pruning"):
            method: Any = adapters.get(name).configure({})
            engine = method.engine(system, Budget("sparsity", 0.7), systems.collection)
            assert engine.documents.nnz == pytest.approx(0.3 * engine.vectors.documents.nnz, rel=0.01)
    finally:
        system.encoder.encode = encode
    systems.runs.clear()
    assert same(before, systems.run("learned-sparse"))


def test_queries_are_pruned_where_that_is_the_method(systems: Systems) -> None:
    counted = systems.run("query-pruning", Budget("terms", 4)).counted
    assert counted["terms a query"] == 4
    assert "queries" in counted["sparsity_of"] and counted["sparsity"] > 0.5
    assert counted["bytes"] == counted["bytes_dense"]
    assert same(systems.run("query-pruning", Budget("terms", 4)), systems.run("learned-sparse", query_terms=4))


def test_without_expansion_only_the_texts_own_terms_are_left(systems: Systems) -> None:
    from sparsebench.retrieval.encoders import wordpieces

    system = systems.by_kind["sparse-encoder"]
    encoder = system.encoder
    own = [wordpieces(encoder.tokenizer, t, encoder.terms) for t in (collection().documents(), collection().queries)]
    for side, left in (("queries", (False, True)), ("documents", (True, False)), ("both", (True, True))):
        method: Any = adapters.get("expansion-off").configure({"side": side})
        engine = method.engine(system, None, systems.collection)
        kept = engine.documents, engine.queries
        full = engine.vectors.documents, engine.vectors.queries
        for index, pruned in enumerate(left if side != "queries" else (False, True)):
            if not pruned:
                assert kept[index].nnz == full[index].nnz
                continue
            expected = full[index].toarray() * (own[index].toarray() > 0)
            assert np.array_equal(kept[index].toarray(), expected)
            assert kept[index].nnz < full[index].nnz


def test_inference_free_queries_are_wordpieces_with_their_weights(systems: Systems, tmp_path: Path) -> None:
    system = systems.by_kind["sparse-encoder"]
    engines = {
        weights: adapters.get("inference-free").configure({"weights": weights}).engine(system, None, collection())  # type: ignore[attr-defined]
        for weights in ("idf", "binary")
    }
    assert set(engines["binary"].queries.data.tolist()) == {1.0}
    assert len(set(engines["idf"].queries.data.tolist())) > 10
    assert engines["idf"].queries.indices.tolist() == engines["binary"].queries.indices.tolist()
    plain: Any = adapters.get("learned-sparse").configure({})
    assert np.array_equal(
        engines["idf"].documents.toarray(), plain.engine(system, None, collection()).documents.toarray()
    )
    with pytest.raises(MissingError, match=r"idf\.json"):
        systems.run("inference-free", weights="released")


def test_released_weights_are_read_from_the_models_folder(systems: Systems, tmp_path: Path) -> None:
    import json
    import shutil

    source = systems.by_kind["sparse-encoder"].folder
    assert source is not None
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "idf.json").write_text(json.dumps({"the": 0.25, "list": 3.0}))
    system = EncoderSystem("sparse-encoder", "released", "r", folder)
    method: Any = adapters.get("inference-free").configure({"weights": "released"})
    engine = method.engine(system, None, collection())
    assert set(engine.queries.data.tolist()) <= {0.25, 3.0}
    assert engine.queries.nnz


def test_fusion_is_that_of_both_runs(systems: Systems) -> None:
    first, second = systems.run("exact-dense"), systems.run("bm25")
    ranks = fusion.reciprocal_rank_fusion([first.run, second.run], 10, DEPTH)
    weighted = fusion.interpolate(second.run, first.run, 0.3, DEPTH)
    for name, knobs, expected in (
        ("reciprocal-rank-fusion", {"k": 10}, ranks),
        ("weighted-fusion", {"alpha": 0.3}, weighted),
    ):
        found = systems.run(name, **knobs)
        assert np.array_equal(found.run.hits.docs, expected.hits.docs)
        assert np.array_equal(found.run.hits.scores, expected.hits.scores)
        for key in ("flops", "bytes", "index bytes in memory"):
            assert found.counted[key] == first.counted[key] + second.counted[key]
        assert found.facts["second"]["kind"] == "lexical"


def test_weights_at_the_ends_are_the_parts(systems: Systems) -> None:
    for alpha, part in ((0.0, "exact-dense"), (1.0, "bm25")):
        fused = systems.run("weighted-fusion", alpha=alpha).run.cut(5)
        assert np.array_equal(fused.hits.docs, systems.run(part).run.cut(5).hits.docs)


def test_the_second_may_have_an_encoder_a_budget_and_a_second_of_its_own(systems: Systems) -> None:
    pruned = {"method": "document-pruning", "budget": {"sparsity": 0.5}, "kind": "sparse-encoder"}
    on_same = systems.run("reciprocal-rank-fusion", system="sparse-encoder", second=pruned)
    parts = systems.run("learned-sparse"), systems.run("document-pruning", Budget("sparsity", 0.5))
    expected = fusion.reciprocal_rank_fusion([part.run for part in parts], depth=DEPTH)
    assert np.array_equal(on_same.run.hits.docs, expected.hits.docs)
    inner = {"method": "weighted-fusion", "knobs": {"second": {"method": "bm25", "knobs": {"k1": 1.2}}}}
    three = systems.run("reciprocal-rank-fusion", second={**inner, "kind": "dense-encoder"})
    fused = fusion.interpolate(systems.run("bm25", k1=1.2).run, systems.run("exact-dense").run, 0.5, DEPTH)
    expected = fusion.reciprocal_rank_fusion([systems.run("exact-dense").run, fused], depth=DEPTH)
    assert np.array_equal(three.run.hits.docs, expected.hits.docs)


@pytest.mark.parametrize("form", ["average", "rocchio"])
@pytest.mark.parametrize("where", ["none", "before", "after", "both"])
def test_feedback_with_interpolation_before_and_after(systems: Systems, form: str, where: str) -> None:
    dense: Any = adapters.get("exact-dense").configure({})
    engine = dense.engine(systems.by_kind["dense-encoder"], None, systems.collection)
    index, words = DenseIndex(engine.documents), systems.run("bm25").run
    ids = systems.collection.query_ids, systems.collection.doc_ids
    run = Run(*ids, index.search(engine.queries, DEPTH))
    if where in ("before", "both"):
        run = fusion.interpolate(words, run, 0.4, DEPTH)
    move = average if form == "average" else rocchio
    run = Run(*ids, index.search(move(engine.queries, engine.documents, run.hits, 4), DEPTH))
    if where in ("after", "both"):
        run = fusion.interpolate(words, run, 0.4, DEPTH)
    found = systems.run("vector-prf", form=form, documents=4, interpolate=where, alpha=0.4)
    assert np.array_equal(found.run.hits.docs, run.hits.docs)
    assert found.run.hits.scores == pytest.approx(run.hits.scores, abs=1e-6)
    second = systems.run("bm25").counted if where != "none" else {"flops": 0, "flops_dense": 0}
    once = systems.run("exact-dense").counted["flops"]
    assert found.counted["flops"] == 2 * once + second["flops"]
    assert found.counted["flops_dense"] == once + second["flops_dense"]


def test_feedback_moves_sparse_queries_too_but_no_sets_of_vectors(systems: Systems) -> None:
    moved = systems.run("vector-prf", system="sparse-encoder")
    assert not same(moved, systems.run("learned-sparse"))
    assert moved.counted["flops"] > moved.counted["flops_dense"]
    with pytest.raises(InputError, match="no single vector"):
        systems.run("vector-prf", first={"method": "late-interaction"})


def test_a_wrong_second_is_an_error(systems: Systems, minilm_folder: Path) -> None:
    method = adapters.get("weighted-fusion")
    with pytest.raises(UnknownNameError, match="bm52"):
        method.configure({"second": {"method": "bm52"}})
    with pytest.raises(InputError, match="is no retrieval method"):
        method.configure({"second": {"method": "wanda"}})
    with pytest.raises(UnknownNameError, match="k2"):
        method.configure({"second": {"method": "bm25", "knobs": {"k2": 1}}})
    with pytest.raises(InputError, match="no budget"):
        method.configure({"second": {"method": "bm25", "budget": {"terms": 4}}})
    with pytest.raises(InputError, match="name it"):
        method.configure({"second": {"knobs": {"k1": 1}}})
    with pytest.raises(InputError, match="needs a model"):
        systems.run("weighted-fusion", second={"kind": "sparse-encoder"})
    with pytest.raises(InputError, match="not on a lexical"):
        systems.run("weighted-fusion", second={"method": "exact-dense"})
    changed = {"kind": "dense-encoder", "model": f"path:{minilm_folder}", "fingerprint": "of other weights"}
    with pytest.raises(IntegrityError, match="changed meanwhile"):
        systems.run("weighted-fusion", system="lexical", second=changed)


def test_what_the_second_is_is_part_of_the_configuration(minilm_folder: Path) -> None:
    method = adapters.get("weighted-fusion")
    plain: Any = method.configure({}).resolved()
    assert plain.config["second"]["method"] == "bm25" and plain.config["second"]["version"] == 1
    assert plain.config["second"]["knobs"]["k1"] == 0.9, "defaults are written out: they may change"
    assert plain.config == method.configure(plain.config).resolved().config
    other: Any = method.configure({"second": {"kind": "dense-encoder", "model": f"path:{minilm_folder}"}}).resolved()
    assert len(other.config["second"]["fingerprint"]) >= 16
