"""`sparsebench conform` of methods that rank documents: each way to break the contract fails by its own check."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from sparsebench.adapters import MethodCard
from sparsebench.adapters.base import Adapter
from sparsebench.adapters.retrieval.bm25 import Bm25
from sparsebench.cli import app
from sparsebench.conformance import conform
from sparsebench.conformance_retrieval import CHECKS
from sparsebench.errors import InputError
from sparsebench.retrieval import measure
from sparsebench.retrieval.static_pruning import prune_random


def card(**more):
    about = {"title": "Outside", "summary": "Of another package.", "role": "control", "unit": "term", "phases": ()}
    return MethodCard(id="outside", family="retrieval", **{**about, "budgets": ("sparsity",), **more})


class Pruned(Bm25):
    """BM25 without some of the postings."""

    card: ClassVar[MethodCard] = card()

    def sparsify(self, vectors, budget):
        documents = vectors.documents if budget is None else prune_random(vectors.documents, budget.number, 0)
        return documents, vectors.queries


class LeavesNothingOut(Pruned):
    """Says nothing of the budget."""

    def sparsify(self, vectors, budget):
        return vectors.documents, vectors.queries


class NeverWhole(Pruned):
    """Leaves a tenth more out than is asked for."""

    def sparsify(self, vectors, budget):
        documents = vectors.documents
        return prune_random(documents, 0.0 if budget is None else min(budget.number + 0.1, 0.99), 0), vectors.queries


class Draws(Pruned):
    """Draws without a seed."""

    def sparsify(self, vectors, budget):
        return prune_random(vectors.documents, 0.5, int(np.random.default_rng().integers(1 << 30))), vectors.queries


class Writes(Pruned):
    """Prunes the vectors that all budgets share."""

    def sparsify(self, vectors, budget):
        if budget is not None:
            vectors.documents.data *= np.arange(vectors.documents.nnz) % 2
        return super().sparsify(vectors, budget)


class OfTheBatch(Pruned):
    """Only terms that most queries have are looked for."""

    def sparsify(self, vectors, budget):
        queries = vectors.queries.copy()
        queries.data *= np.asarray((queries > 0).sum(axis=0)).ravel()[queries.indices]
        return super().sparsify(replace(vectors, queries=queries), budget)


class TakesAll(Pruned):
    """Takes budgets that its card does not name."""

    def check_budget(self, budget):
        return


class Unmeasured(Pruned):
    """Counts nothing."""

    def sizes(self, engine, hits):
        return {}


class Shuffled(Pruned):
    """Gives other queries than were asked."""

    def retrieve(self, system, budget, collection, depth):
        found = super().retrieve(system, budget, collection, depth)
        return replace(found, run=replace(found.run, query_ids=found.run.query_ids[::-1]))


class Elsewhere(Adapter):
    """Runs on what nobody has."""

    card: ClassVar[MethodCard] = card()
    accepts: ClassVar[tuple[str, ...]] = ("vision-transformer",)

    @contextmanager
    def attach(self, system, prepared, budget):
        yield system


@pytest.fixture(autouse=True)
def _few_are_timed(monkeypatch):
    monkeypatch.setattr(measure, "TIMED_QUERIES", 2)


def failed(name, **options):
    return {result.check: result.detail for result in conform(name, **options) if result.status == "failed"}


@pytest.mark.parametrize("name", ["bm25", "bm25-fields", "reciprocal-rank-fusion", "term-pruning", "muvera"])
def test_methods_of_every_base_class_pass(name):
    assert failed(name) == {}


def test_a_hook_that_raises_is_a_failed_check(outside):
    class Raises(Pruned):
        def encode(self, system, collection):
            raise ZeroDivisionError("in encode")

    outside(Raises)
    found = failed("outside")
    assert found["each query has a ranking of documents that are there, each once"] == "ZeroDivisionError: in encode"


def test_one_of_another_package_passes(outside):
    outside(Pruned)
    assert [(r.check, r.status) for r in conform("outside")] == [(check, "ok") for check in CHECKS]


@pytest.mark.parametrize(
    ("method", "check", "said"),
    [
        (LeavesNothingOut, "smaller budgets cost less", "at sparsity 0.5 it costs no less"),
        (NeverWhole, "a full budget leaves nothing out", "at sparsity 0 it finds something else"),
        (Draws, "equal calls find the same", "it finds something else without one"),
        (Writes, "equal calls find the same", "after its budgets were run"),
        (OfTheBatch, "a query is answered alike whatever the others are", "when half of the queries are asked"),
        (TakesAll, "budgets that it does not take are refused", "names no budget of terms"),
        (Unmeasured, "what it takes is counted and timed", "bytes and bytes_dense are not counted"),
        (Shuffled, "each query has a ranking of documents that are there, each once", "has other queries"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_fault_fails_its_check(method, check, said, outside):
    outside(method)
    assert said in failed("outside")[check]


def test_what_there_are_no_checks_for_is_refused(outside):
    outside(Elsewhere)
    with pytest.raises(InputError, match="vision-transformer, for which there are no checks"):
        conform("outside")


def test_the_command_says_what_came_of_it(outside):
    outside(LeavesNothingOut)
    ran = CliRunner().invoke(app, ["conform", "outside"])
    assert (ran.exit_code, "✕  smaller budgets cost less" in ran.output) == (1, True), ran.output
