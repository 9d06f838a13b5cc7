"""Cells of a mixture of experts, from evaluating to the account of what was recorded."""

from __future__ import annotations

import models
import pytest

import sparsebench
from sparsebench import adapters
from sparsebench.account import ACTIVE_BYTES, ACTIVE_ZEROS
from sparsebench.explain import explain
from sparsebench.store import Store

METHODS = [
    ("magnitude", {"sparsity": 0.5}),
    ("magnitude", {"sparsity": 0.5, "compare_group": "global"}),
    ("wanda", {"pattern": "2:4"}),
    ("rtn", {"bits": 4}),
    ("random-activations", {"sparsity": 0.5}),
]


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_cells_of_experts_add_up(small, tmp_path, name):
    model = models.tiny_model(name)
    stacks = [adapters.create(method, **knobs) for method, knobs in METHODS]
    tasks = [small.task("tiny-perplexity")]
    sparsebench.evaluate(model, models.tiny_tokenizer(), tasks, methods=stacks, out=tmp_path / "out", name=name)
    store = Store.open(tmp_path / "out")
    cells = [store.read(identity) for identity in store.ids()]
    assert len(cells) == 1 + len(METHODS)
    for cell in cells:
        outcome = cell.record.outcome
        assert outcome.status == "ok", outcome.error
        found = explain(cell)
        assert found.totals and all(total.agrees for total in found.totals), (cell.record.placement.label, found.totals)
        family = cell.spec.stack[0].method if cell.spec.stack else "dense"
        pruned = family in ("magnitude", "wanda", "rtn")
        assert ({ACTIVE_ZEROS, ACTIVE_BYTES} <= set(outcome.densities)) == pruned
        if family == "dense":
            assert outcome.flops == outcome.flops_dense
        elif family != "rtn":
            assert outcome.sparsity == pytest.approx(0.5, abs=1e-2)
            assert outcome.flops < 0.9 * outcome.flops_dense
