"""Trained cells: what their encoders weight, what presses and ranks them, and runs that go on where they stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from sparsebench import adapters
from sparsebench.adapters.base import Prepared
from sparsebench.cli import app
from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.encoders import wordpieces
from sparsebench.retrieval.training import losses
from sparsebench.retrieval.training.examples import batch_of, examples
from sparsebench.retrieval.training.model import LearnedSparseModel
from sparsebench.retrieval.training.settings import GridCell, Regulariser, Settings, read_settings
from sparsebench.retrieval.training.train import Trainer
from sparsebench.systems.retrieval import EncoderSystem

WORDS = "wing flow heat plate shock jet drag lift wave skin body nose cone tube ring disk".split()
TITLES = [f"{a} {b} {c}" for a, b, c in zip(WORDS, WORDS[3:] + WORDS[:3], WORDS[7:] + WORDS[:7], strict=True)]
COLLECTION = Collection.from_dicts(
    "toy",
    {
        f"d{n:02d}": {"title": title, "text": f"{title} theory of {WORDS[n]} and {WORDS[-n]}"}
        for n, title in enumerate(TITLES)
    },
    {"q0": "flow over a plate", "q1": "lift of a wing"},
    {"q0": {"d01": 1}, "q1": {"d00": 1, "d07": 1}},
)
CELLS = [
    GridCell(query=query, document=document)
    for query in ("binary", "mlp", "mlm")
    for document in ("mlp", "expanded-mlp", "mlm")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, splade_folder: Path) -> Path:
    """A masked language model of one small layer with random weights, and a real tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(splade_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(base: Path, **changes: Any) -> Settings:
    cell = changes.pop("cell", CELLS[-1])
    fixed = {"task": "toy", "base": f"path:{base}", "cell": cell, "steps": 4, "batch": 4, "max_length": 32}
    return Settings(**{**fixed, "save_every": 2, "learning_rate": 1e-3, **changes})


def tokens(base: Path, texts: list[str]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_which_terms_a_cell_weights(base: Path, cell: GridCell) -> None:
    torch.manual_seed(1)
    model = LearnedSparseModel.from_base(base, cell).eval()
    texts = ["the flow over a wing", "heat"]
    batch = tokens(base, texts)
    from transformers import AutoTokenizer

    own = wordpieces(AutoTokenizer.from_pretrained(base), texts, model.terms).toarray() > 0
    for side, kind in (("query", cell.query), ("document", cell.document)):
        weights = model(side, batch["input_ids"], batch["attention_mask"]).detach().numpy()
        assert weights.shape == own.shape and (weights >= 0).all()
        inside = (weights > 0) & own
        if kind == "binary":
            assert np.array_equal(weights, own.astype(np.float32))
        elif kind == "mlp":
            assert inside.sum() == (weights > 0).sum() > 0
        elif kind == "expanded-mlp":
            assert 0 < ((weights > 0) & ~own).sum() <= 2 * cell.expansion
        alone = tokens(base, texts[1:])
        again = model(side, alone["input_ids"], alone["attention_mask"]).detach().numpy()
        if kind != "expanded-mlp":
            assert np.allclose(again[0], weights[1], atol=1e-5), "padding changes nothing"


def test_top_terms_and_sum_pooling(base: Path) -> None:
    torch.manual_seed(1)
    batch = tokens(base, ["wing wing wing"])
    weights = {}
    for pooling in ("max", "sum"):
        torch.manual_seed(1)
        model = LearnedSparseModel.from_base(base, GridCell(query="mlp", document="mlm", pooling=pooling)).eval()
        weights[pooling] = model("query", batch["input_ids"], batch["attention_mask"])
    assert weights["sum"].max() > 2.5 * weights["max"].max() > 0
    cut = GridCell(query="mlm", document="mlm", query_terms=5, document_terms=7)
    model = LearnedSparseModel.from_base(base, cut).eval()
    for side, count in (("query", 5), ("document", 7)):
        assert (model(side, batch["input_ids"], batch["attention_mask"]) > 0).sum() == count


def test_penalties_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    idf = torch.tensor([2.0, 1.0, 0.5])
    assert losses.penalty(weights, Regulariser(kind="l1"), idf) == 3.0
    assert losses.penalty(weights, Regulariser(kind="flops"), idf) == 4.0 + 1.0
    assert losses.penalty(weights, Regulariser(kind="idf-flops"), idf) == 1.0 + 4.0
    assert losses.penalty(weights, Regulariser(kind="flops", threshold=1), idf) == 0.25 + 1.0
    assert losses.penalty(weights, Regulariser(kind="flops", threshold=2), idf) == 0.0
    assert losses.penalty(weights, Regulariser(kind="none"), idf) == 0.0


def test_ranking_losses() -> None:
    scores = torch.tensor([[5.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    good = losses.contrastive(scores, torch.tensor([0, 1]), allowed)
    assert good < losses.contrastive(scores, torch.tensor([0, 1]), torch.ones_like(allowed))
    assert losses.distillation(scores, 2 * scores, 2.0) == pytest.approx(0.0, abs=1e-6)
    assert losses.distillation(scores, -scores, 1.0) > 1


def test_examples_are_drawn_from_seed_and_step(base: Path) -> None:
    given = settings(base, negatives=2)
    found = examples(given, COLLECTION)
    assert len(found.queries) == 16 and not any(
        text.startswith(t) for text, t in zip(found.documents, TITLES, strict=True)
    )
    batch, again = batch_of(found, given, 3), batch_of(found, given, 3)
    assert np.array_equal(batch.documents, again.documents) and batch.documents.shape == (12,)
    assert not np.array_equal(batch.documents, batch_of(found, given, 4).documents)
    assert np.array_equal(batch.documents[:4], batch.queries) and batch.allowed[:, :4].diagonal().all()
    judged = examples(settings(base, queries="judged", batch=2), COLLECTION)
    assert [row.tolist() for row in judged.relevant] == [[1], [0, 7]]
    with pytest.raises(InputError, match="2 queries to train on"):
        examples(settings(base, queries="judged"), COLLECTION)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "cell": GridCell(query="mlp", document="expanded-mlp", expansion=4),
            "regulariser": Regulariser(kind="idf-flops"),
        },
        {"cell": CELLS[-1], "regulariser": Regulariser(kind="flops", threshold=50)},
    ],
)
def test_a_stopped_run_gives_what_it_would_have_given(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    given = settings(base, **changes)
    whole = Trainer(given, base, COLLECTION, tmp_path / "whole")
    whole.run()
    Trainer(given, base, COLLECTION, tmp_path / "parts").run(until=2)
    parts = Trainer(given, base, COLLECTION, tmp_path / "parts")
    assert parts.step == 2
    with pytest.raises(InputError, match="2 steps are left"):
        parts.encoder()
    parts.run()
    assert parts.steps == whole.steps
    for (name, ours), theirs in zip(parts.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with pytest.raises(InputError, match="other settings"):
        Trainer(settings(base, **{**changes, "seed": 1}), base, COLLECTION, tmp_path / "parts")


def test_training_learns_and_the_encoder_is_searched(base: Path, tmp_path: Path) -> None:
    cell = GridCell(query="mlp", document="mlp")
    trainer = Trainer(settings(base, cell=cell, steps=40, batch=8, save_every=40), base, COLLECTION, tmp_path)
    trainer.run()
    first, last = (np.mean([step.loss for step in part]) for part in (trainer.steps[:8], trainer.steps[-8:]))
    assert last < first
    folder = trainer.encoder()
    assert {path.name for path in folder.iterdir()} >= {
        "sparse_cell.json",
        "sparse_heads.safetensors",
        "tokenizer.json",
    }
    system = EncoderSystem("sparse-encoder", "path:trained", "f", folder)
    method: Any = adapters.get("learned-sparse").configure({})
    with method.attach(system, Prepared(), None) as retriever:
        found = retriever.retrieve(COLLECTION, 5)
    assert found.run.ranking("q1") and found.counted["terms a query"] <= 5
    trainer.model.eval()
    batch = tokens(folder, ["flow over a plate"])
    expected = trainer.model("query", batch["input_ids"], batch["attention_mask"]).detach().numpy()
    assert np.allclose(system.encoder.encode_queries(["flow over a plate"]).vectors.toarray(), expected, atol=1e-5)


def test_distillation_needs_a_teacher(base: Path) -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        settings(base, loss="distillation")


def test_distillation_follows_the_teacher(base: Path, tmp_path: Path, minilm_folder: Path) -> None:
    given = settings(base, loss="distillation", teacher=f"path:{minilm_folder}", temperature=0.1, steps=2)
    trainer = Trainer(given, base, COLLECTION, tmp_path)
    assert trainer.examples.teacher is not None and trainer.examples.teacher.shape == (16, 16)
    trainer.run()
    assert all(step.loss >= 0 for step in trainer.steps)


def test_the_command_trains_a_grid_and_goes_on(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    rows = zip(COLLECTION.doc_ids, COLLECTION.titles, COLLECTION.texts, strict=True)
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, title, text in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": "flow over a plate"}))
    (folder / "qrels" / "test.tsv").write_text("q0\td01\t1\n")
    task = {
        **{"task": "toy", "version": 1, "title": "Toy", "family": "retrieval", "type": "retrieval"},
        "data": [{"path": str(folder)}],
        "metrics": [{"name": "nDCG@10", "column": "nDCG@10", "headline": True}],
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    common = settings(base, task=str(tmp_path / "task.yaml")).model_dump(mode="json", exclude={"cell"})
    cells = [{"query": "binary", "document": "mlp"}, {"query": "mlm", "document": "mlm"}]
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**common, "cells": cells}))
    assert [run.cell.name for run in read_settings(path)] == ["binary-mlp", "mlm-mlm"]
    out = str(tmp_path / "out")
    begun = CliRunner().invoke(app, ["train-sparse", str(path), "--out", out, "--until", "2"], catch_exceptions=False)
    assert begun.exit_code == 0 and "suite.yaml" not in begun.output
    done = CliRunner().invoke(app, ["train-sparse", str(path), "--out", out], catch_exceptions=False)
    assert "mlm-mlm 4/4" in done.output and "binary-mlp 1/4" not in done.output
    from sparsebench.suite_run import run_suite

    outcome = run_suite(str(tmp_path / "out" / "suite.yaml"), tmp_path / "results")
    assert (outcome.done, outcome.failed) == (8, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("cells: []", "list of `cells`"), ("cells: [{query: mlp, document: mlp}, {query: mlp, document: mlp}]", "same")],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(f"task: cranfield\nbase: path:x\n{text}\n")
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path / "s.yaml")
