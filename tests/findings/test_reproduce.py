"""A finding from end to end on a tiny model: its suite runs, its cells are kept, its rule gives an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import yaml
from typer.testing import CliRunner

from sparsebench.cli import app
from sparsebench.findings.definition import rule_hash
from sparsebench.store import Store

PAPER = {"title": "T", "authors": "A", "year": 2026, "url": "https://example.org"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of random weights, and texts."""
    folder = tmp_path_factory.mktemp("tiny")
    models.tiny_model("llama").save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("".join(models.STORIES) * 3)
    rows = [{"id": str(i), "prompt": text[:40], "target": ""} for i, text in enumerate(models.STORIES)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def task(folder: Path, **fields: Any) -> str:
    definition = {"version": 1, "title": "t", "family": "language", **fields}
    path = folder / f"{fields['task']}.yaml"
    path.write_text(yaml.safe_dump(definition))
    return str(path)


def finding(folder: Path, tasks: list[str], methods: list[Any], rule: dict[str, Any]) -> Path:
    rule = {"statement": "s", "resamples": 200, **rule}
    data = {
        "finding": "tiny-finding",
        "version": 1,
        "title": "t",
        "papers": [PAPER],
        "rule": rule,
        "rule_sha256": rule_hash(rule),
        "suite": {
            "systems": {"model": {"model": f"path:{folder / 'model'}", "dtype": "float32"}},
            "grids": [{"name": "g", "system": "model", "tasks": tasks, "methods": ["dense", *methods]}],
        },
    }
    path = folder / "finding.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def reproduced(*arguments: str) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["reproduce", *arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return dict(json.loads(ran.stdout))


def test_a_finding_runs_once_and_is_asked_again(tiny: Path, tmp_path: Path) -> None:
    metric = {"name": "perplexity", "column": "nll", "transform": "exp", "higher_is_better": False, "headline": True}
    source = [{"path": str(tiny / "text.txt")}]
    shape = {"build": "whole-text", "window": 32, "data": source, "metrics": [metric]}
    text = task(tmp_path, task="tiny-text", type="perplexity", **shape)
    methods = [
        {"method": "magnitude", "budgets": {"sparsity": [0.5]}},
        {"method": "random-weights", "budgets": {"sparsity": [0.5]}, "seeds": [0, 1]},
    ]
    rule = {
        "kind": "superiority",
        "measured": {"task": "tiny-text"},
        "ours": {"method": "magnitude"},
        "theirs": {"method": "random-weights"},
        "levels": [0.5],
        "replicates": 2,
    }
    (tmp_path / "model").symlink_to(tiny / "model")
    path = finding(tmp_path, [text], methods, rule)
    first = reproduced(str(path), "--out", str(tmp_path / "out"), "--device", "cpu", "--limit", "4")
    assert first["verdict"] in ("holds", "refuted", "underpowered")
    assert first["limited"] and first["rule_sha256"] == rule_hash({"statement": "s", "resamples": 200, **rule})
    assert len(first["figures"]) == 1 and first["figures"][0]["low"] <= first["figures"][0]["value"]
    stored = {i: (tmp_path / "out/cells" / i / "record.json").stat().st_mtime_ns for i in Store(tmp_path / "out").ids()}
    assert len(stored) == 4
    again = reproduced(str(path), "--out", str(tmp_path / "out"), "--device", "cpu", "--limit", "4")
    assert again["figures"] == first["figures"]
    assert stored == {i: (tmp_path / "out/cells" / i / "record.json").stat().st_mtime_ns for i in stored}
    taken = reproduced(str(path), "--results", str(tmp_path / "out"))
    assert taken["figures"] == first["figures"]
    workers = ("--executor", "process", "--workers", "2")
    apart = reproduced(str(path), "--out", str(tmp_path / "apart"), "--device", "cpu", "--limit", "4", *workers)
    assert apart["figures"] == first["figures"]
    assert Store(tmp_path / "apart").ids() == Store(tmp_path / "out").ids()


def test_drift_is_measured_along_dense_text(tiny: Path, tmp_path: Path) -> None:
    columns = {"late": "kl_late", "early": "kl_early", "agree": "agree_late", "unlikely": "unlikely_late"}
    metrics = [
        {"name": n, "column": c, "higher_is_better": n == "agree", "headline": n == "late"} for n, c in columns.items()
    ]
    source = [{"path": str(tiny / "rows.jsonl")}]
    texts = task(tmp_path, task="tiny-texts", type="continuation", data=source, metrics=metrics)
    methods = [
        {"method": "griffin", "budgets": {"sparsity": 0.5}},
        {"method": "sirius", "budgets": {"sparsity": 0.5}},
    ]
    rule = {
        "kind": "contextual-gap",
        "early": {"task": "tiny-texts", "metric": "early"},
        "late": {"task": "tiny-texts", "metric": "late"},
        "unlikely": {"task": "tiny-texts", "metric": "unlikely"},
        "sparse": [{"method": "griffin"}],
        "corrected": [{"method": "sirius"}],
        "level": 0.5,
        "samples": 500,
        "recovery": 0.5,
        "density": 0.8,
    }
    (tmp_path / "model").symlink_to(tiny / "model")
    found = reproduced(
        str(finding(tmp_path, [texts], methods, rule)), "--out", str(tmp_path / "out"), "--device", "cpu"
    )
    assert found["verdict"] == "underpowered"
    assert "3 texts of 500" in found["figures"][0]["note"]
    by_label = {cell.record.placement.label: cell for cell in Store(tmp_path / "out")}
    values = {m.metric.name: m.value for m in by_label["dense"].record.outcome.metrics}
    assert 0 < values.pop("unlikely")
    assert values == {"late": 0.0, "early": 0.0, "agree": 1.0}
    sparse = {m.metric.name: m.value for m in by_label["griffin 50%"].record.outcome.metrics}
    assert sparse["late"] > 0 and sparse["early"] > 0
    assert by_label["sirius 50%"].record.outcome.densities["effective density in decode"] > 0


def test_of_a_length_that_the_dense_model_does_not_read_no_sparse_row_runs(tiny: Path, tmp_path: Path) -> None:
    source = [{"path": str(tiny / "rows.jsonl")}]
    tasks = [
        task(tmp_path, task=f"tiny-{name}", type="continuation", data=source, metrics=[metric])
        for name, metric in {
            "read": {"name": "agree", "column": "agree_late", "higher_is_better": True, "headline": True},
            "unread": {"name": "late", "column": "kl_late", "higher_is_better": False, "headline": True},
        }.items()
    ]
    phases = {phase: {"method": "oracle-tokens", "knobs": {"phase": phase}} for phase in ("prefill", "decode")}
    rule = {
        "kind": "phase-tolerance",
        "units": [{"name": "tokens", **phases}],
        "tasks": {"a": ["tiny-read", "tiny-unread"]},
        "margin": 0.05,
        "usable": 0.5,  # against itself the dense model agrees always, and diverges by nothing
        "samples": 500,
        "decode_queries": 64,
        "required": 1,
    }
    (tmp_path / "model").symlink_to(tiny / "model")
    methods = [{**row, "budgets": {"sparsity": [0.5, 0.9]}} for row in phases.values()]
    found = reproduced(str(finding(tmp_path, tasks, methods, rule)), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert found["verdict"] == "underpowered" and "3 samples of 500" in found["figures"][0]["note"]
    ran = sorted((c.spec.task.id, c.record.placement.label) for c in Store(tmp_path / "out"))
    assert [task for task, _ in ran].count("tiny-read") == 5
    assert [label for task, label in ran if task == "tiny-unread"] == ["dense"]


@pytest.mark.parametrize("arguments", [["no-such-finding"], ["wina-beats-teal", "--results", "/nowhere"]])
def test_wrong_input_is_an_error(arguments: list[str]) -> None:
    ran = CliRunner().invoke(app, ["reproduce", *arguments])
    assert ran.exit_code != 0
    assert getattr(ran.exception, "exit_code", None) == 2


def test_findings_are_listed() -> None:
    ran = CliRunner().invoke(app, ["reproduce", "--json"])
    rows = json.loads(ran.stdout)
    assert len(rows) >= 10 and all(len(row["rule_sha256"]) == 64 for row in rows)


def test_listing_findings_needs_no_heavy_library() -> None:
    import subprocess
    import sys

    program = "import sys\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("torch", "transformers", "pandas", "scipy", "pyarrow", "lm_eval")
    )
    program += "from sparsebench.cli import main\nmain()"
    ran = subprocess.run([sys.executable, "-c", program, "reproduce"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "wina-beats-teal" in ran.stdout
