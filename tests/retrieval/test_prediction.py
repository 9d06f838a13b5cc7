"""What a plan predicts for retrieval: vectors are computed once for all rows of a system on a collection."""

from __future__ import annotations

from pathlib import Path

import yaml

from sparsebench.plan import plan
from sparsebench.prediction import RETRIEVAL_SECONDS, predicted_seconds
from sparsebench.suite_source import load_suite


def test_vectors_are_paid_for_once(tmp_path: Path, minilm_folder: Path) -> None:
    suite = {
        **{"suite": "s", "version": 1},
        "systems": {
            "lexical": {"kind": "lexical"},
            "dense": {"kind": "dense-encoder", "model": f"path:{minilm_folder}"},
        },
        "grids": [
            {
                **{"name": name, "system": "dense", "baseline": "exact-dense", "tasks": ["documentation-search"]},
                "methods": ["exact-dense", *methods],
            }
            for name, methods in (
                ("dense", [{"method": "late-interaction", "budgets": {"depth": [10, 20]}}]),
                ("hybrid", ["vector-prf", {"method": "bm25", "system": "lexical"}]),
            )
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    made = plan(load_suite(str(tmp_path / "suite.yaml")))
    flops = {cell.placement.label: cell.flops for cell in made.cells}
    whole = flops["exact-dense"]
    assert flops["late-interaction 10 depth"] == whole  # vectors of tokens are others than those of texts
    assert 0 < flops["late-interaction 20 depth"] == flops["vector-prf"] < whole / 10
    assert flops["bm25"] == 0
    seconds = predicted_seconds(made)
    assert all(seconds[cell.id] >= RETRIEVAL_SECONDS for cell in made.cells)
