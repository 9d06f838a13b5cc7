"""A small suite with every kind of task, on a model of 260,000 weights and a collection of five documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import models
import pytest
import yaml
from small_tasks import write_tasks


@dataclass(frozen=True)
class SmallSuite:
    """A suite as YAML files in a folder; `write` changes it."""

    folder: Path
    data: dict

    @property
    def path(self) -> Path:
        return self.folder / "suite.yaml"

    def write(self, **changes) -> Path:
        """The suite's file, with top-level keys replaced."""
        self.path.write_text(yaml.safe_dump({**self.data, **changes}, sort_keys=False))
        return self.path

    def task(self, name: str) -> str:
        return str(self.folder / f"{name}.yaml")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained model where the data are; else one with random weights, which most of these tests need no better."""
    try:
        return f"path:{models.data_folder('stories260k')}"
    except pytest.skip.Exception:
        folder = tmp_path_factory.mktemp("llama")
        models.tiny_model("llama").save_pretrained(folder)
        models.tiny_tokenizer().save_pretrained(folder)
        return f"path:{folder}"


@pytest.fixture
def small(tmp_path: Path, reference: str) -> SmallSuite:
    """The suite: pruning on three language tasks, lexical search on a fourth."""
    folder = tmp_path / "suite"
    folder.mkdir()
    write_tasks(folder)
    data = {
        "suite": "small",
        "version": 1,
        "systems": {
            "stories": {"model": reference, "dtype": "float32"},
            "lexical": {"kind": "lexical"},
        },
        "grids": [
            {
                "name": "weights",
                "system": "stories",
                "tasks": [str(folder / f"tiny-{name}.yaml") for name in ("answers", "choice", "perplexity")],
                "methods": [
                    {"method": "dense", "noise": {"batch_tokens": 64}},
                    {"method": "random-weights", "budgets": {"sparsity": 0.5}, "seeds": [0, 1]},
                    {"method": "magnitude", "budgets": {"sparsity": 0.2, "pattern": "2:4"}},
                ],
            },
            {
                "name": "search",
                "system": "lexical",
                "baseline": "bm25",
                "tasks": [str(folder / "tiny-search.yaml")],
                "methods": ["bm25"],
            },
        ],
        "conclude": {"margins": {"*": {"*": {"points": 0.05}}}},
    }
    suite = SmallSuite(folder, data)
    suite.write()
    return suite
