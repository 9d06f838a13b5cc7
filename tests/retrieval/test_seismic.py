"""Seismic finds what exact search finds when it may look at everything, and says nothing on the terminal."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse

from sparsebench.errors import InputError, MissingError
from sparsebench.retrieval.index import InvertedIndex
from sparsebench.retrieval.measure import recall_of_exact
from sparsebench.retrieval.seismic import Blocks, SeismicIndex


def vectors(rows: int, seed: int) -> sparse.csr_array:
    random = np.random.default_rng(seed)
    made = sparse.random_array((rows, 300), density=0.08, rng=random, format="csr", dtype=np.float32)
    return sparse.csr_array(made)


def test_recall_follows_the_knobs_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("seismic")
    docs, queries = vectors(800, 0), vectors(30, 1)
    exact = InvertedIndex(docs).search(queries, 10)
    whole = SeismicIndex(docs, Blocks(summary_energy=1.0, heap_factor=1.0)).search(queries, 10)
    assert recall_of_exact(exact, whole, 10) > 0.95
    assert whole.scores == pytest.approx((queries @ docs.T).toarray()[whole.query_of, whole.docs], rel=5e-3)
    rough = SeismicIndex(docs, Blocks(query_cut=2, heap_factor=0.7)).search(queries, 10)
    assert recall_of_exact(exact, rough, 10) < recall_of_exact(exact, whole, 10)
    assert whole.touched is None
    assert capfd.readouterr() == ("", "")


def test_documents_and_queries_without_terms_are_nothing_special() -> None:
    pytest.importorskip("seismic")
    docs, queries = vectors(50, 0).tolil(), vectors(3, 1).tolil()
    docs[7], queries[1] = 0, 0
    index = SeismicIndex(sparse.csr_array(docs))
    found = index.search(sparse.csr_array(queries), 100)
    assert len(found) == 3 and found.counts[1] == 0
    assert 7 not in found.docs
    assert index.nbytes > 0
    with pytest.raises(InputError, match="terms"):
        index.search(sparse.csr_array((1, 5), dtype=np.float32), 1)
    with pytest.raises(InputError, match="k must be 1"):
        index.search(sparse.csr_array(queries), 0)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(MissingError, match=r"sparsebench\[seismic\]"):
        SeismicIndex(vectors(5, 0))
