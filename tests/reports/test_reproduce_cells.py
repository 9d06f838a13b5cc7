"""Published cells computed again: the commands of their pages work, and what differs is said."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pyarrow as pa
import pytest
from models import tiny_model, tiny_tokenizer

from sparsebench.findings import definition
from sparsebench.metrics import Metric
from sparsebench.packing import pack
from sparsebench.reports.cell_pages import suites
from sparsebench.reports.sources import Samples, open_sources
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.suite_source import load_suite

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reproduce_cells.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not part of what is released")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("reproduce_cells", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_suites_of_findings_run_by_their_names() -> None:
    for name in definition.names():
        assert name in suites()
        assert load_suite(name) == definition.load(name).suite


def test_cells_of_a_packed_folder_come_out_again(script, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    suite = faults.write_suite(tmp_path, f"path:{model}")
    name = load_suite(str(suite)).suite
    suite.rename(tmp_path / f"{name}.yaml")  # as the pages of cells call it
    run_suite(f"{name}.yaml", tmp_path / "results")
    packed = pack(Store(tmp_path / "results"), tmp_path / "published.tar.xz", text_up_to=0, bits=12).path
    (source,) = open_sources([packed])
    cells = script.drawn(source, 2, 60.0, 0, "cpu")
    assert len(cells) == 2
    rows = list(script.reproduced(source, cells, "cpu"))
    assert {cell.id for cell in cells} <= {row["cell"] for row in rows}
    for row in rows:
        assert row["reproduced"], row
        assert row["samples equal"], row
        assert "again" in "\n".join(script.lines(row))
    task = cells[0].spec.task.model_copy(update={"limit": 1})  # another command: there is no such cell
    gone = replace(cells[0], spec=cells[0].spec.model_copy(update={"task": task}))
    (row,) = script.reproduced(source, [gone], "cpu")
    assert not row["reproduced"]
    assert any("has no cell" in line for line in row["why"])


@pytest.mark.parametrize(
    ("change", "differ", "again"),
    [(0.0, False, True), (2.0**-13, False, True), (0.01, True, False), ("noise", True, True)],
)
def test_noise_is_told_from_a_change(script, change, differ, again) -> None:
    random = np.random.default_rng(0)
    before = random.uniform(1, 2, 200)
    after = before * (1 + (0.01 * random.standard_normal(200) if change == "noise" else change))
    old, new = (
        Samples(pa.table({"sample": list(map(str, range(200))), "nll": x, "nll.weight": np.full(200, 3.0)}))
        for x in (before, after)
    )
    found = script.difference(Metric(name="perplexity", column="nll", transform="exp"), old, new, 2.0**-12)
    assert (found["samples that differ"] > 100, found["reproduced"]) == (differ, again)
    assert found["published"] == pytest.approx(before.sum() / 600)
    assert found["difference"] == pytest.approx((after - before).sum() / 600, abs=1e-12)
