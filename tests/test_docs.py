"""What the documents show works: commands, links, suites, tasks, workflows and Python."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import models
import pytest
import typer.main
import yaml
from documents import DOCUMENTS, ROOT, blocks

from sparsebench.cli import app
from sparsebench.suite_source import from_source
from sparsebench.yaml_source import parse_yaml

DOCS = ROOT / "docs"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

SUITE = """\
suite: small
version: 1
systems:
  tiny: {model: "path:MODEL", dtype: float32}
grids:
  - name: weights
    system: tiny
    tasks: [prose-perplexity]
    methods: [dense, {method: magnitude, budgets: {sparsity: 0.5}}]
"""


def commands() -> list[str]:
    """Every command line of ours in a document or a workflow, once."""
    texts = [block for document in DOCUMENTS for language in ("sh", "yaml") for block in blocks(document, language)]
    texts += [path.read_text() for path in WORKFLOWS]
    lines = [line.strip().removeprefix("- run: ").removeprefix("run: ") for text in texts for line in text.splitlines()]
    inline = [
        found for document in DOCUMENTS for found in re.findall(r"`(sparsebench [a-z][^`]*)`", document.read_text())
    ]
    found = [line for line in lines if line.startswith("sparsebench ")] + inline
    return sorted({re.sub(r"\s+#.*$", "", line) for line in found})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("sparsebench", shlex.split(command)[1:])
    name, chosen, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    # A text that only speaks of a command ("`sparsebench plan`") need not have its arguments.
    if rest:
        chosen.make_context(name, list(rest), parent=context)


def test_messages_name_commands_that_there_are() -> None:
    names = set(typer.main.get_command(app).commands)
    for path in (ROOT / "src").rglob("*.py"):
        for name in re.findall(r"`sparsebench ([a-z][a-z-]*)", path.read_text(encoding="utf-8")):
            assert name in names, f"{path.relative_to(ROOT)} names `sparsebench {name}`"


def test_the_readmes_scripts_can_be_run() -> None:
    scripts = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines() if line[:2] == "./"]
    assert scripts == ["./quickstart", "./test"]
    for script in [*scripts, ".ci/run", "scripts/environment.sh"]:
        shell = "bash" if script == ".ci/run" else "sh"
        assert subprocess.run([shell, "-n", ROOT / script], check=False).returncode == 0
        assert script.endswith(".sh") or (ROOT / script).stat().st_mode & 0o111
    assert "./test" in (ROOT / ".ci" / "run").read_text().splitlines()[-1]


def test_commands_are_found() -> None:
    assert {"sparsebench plan quickstart --limit 50", "sparsebench show wanda"} <= set(commands())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("https://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_is_yaml(document: Path) -> None:
    for block in blocks(document, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_workflows_call_what_is_there() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["jobs"]
        for action in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action), f"{action} is not pinned by its major version"
        for script in re.findall(r"run: (\./\S+|\.ci/\S+)", path.read_text()):
            assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"


def test_the_suite_is_valid() -> None:
    example = next(block for block in blocks(DOCS / "suites.md", "yaml") if block.startswith("suite:"))
    suite = from_source(parse_yaml(example, "suites.md"))
    assert [grid.name for grid in suite.grids] == ["weights"]


def test_the_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.tasks import registry

    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    task = registry.get("colours.yaml").bind(models.tiny_tokenizer())
    result = task.evaluate(models.tiny_system("llama"))
    assert list(result.samples["target"]) == ["red", "black"]
    assert list(result.samples["cluster"]) == ["red", "black"]
    assert set(result.samples["correct"]) <= {0.0, 1.0}


def write_task(folder: Path) -> None:
    """The task of suites.md, with its data."""
    task = next(block for block in blocks(DOCS / "suites.md", "yaml") if block.startswith("task:"))
    (folder / "colours.yaml").write_text(task)
    (folder / "colours.jsonl").write_text(blocks(DOCS / "suites.md", "json")[0])


def write_log(folder: Path, model: Any, tokenizer: Any) -> float:
    """A log as `lm_eval --log_samples --output_path` leaves it, by its own backend; the accuracy that it reports."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "colours.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{thing}} is",
        "doc_to_choice": ["red", "black"],
        "doc_to_target": "colour",
        "metric_list": [{"metric": "acc"}],
    }
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    manager = TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0)
    tracker = EvaluationTracker(output_path=str(folder / "logs" / "dense"))
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    for name, lines in samples.items():
        tracker.save_results_samples(name, lines)
    return float(found["results"]["colours"]["acc,none"])


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = models.tiny_model("llama"), models.tiny_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(SUITE.replace("MODEL", str(tmp_path / "model")))
    write_task(tmp_path)
    accuracy = write_log(tmp_path, model, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.chdir(tmp_path)

    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    for block in blocks(DOCS / "python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)

    printed = capsys.readouterr().out
    assert "magnitude+streaming-llm" in printed
    assert names["samples"]["colours"]["acc"].mean() == accuracy
    assert "prunable=" in printed
    table = names["table"]
    assert set(table["source"]) == {"mine", "suite"}
    assert not (table["verdict"] == "failed").any()
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools

    import sparsebench

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sparsebench, "evaluate", functools.partial(sparsebench.evaluate, limit=2))
    names: dict[str, Any] = {"model": models.tiny_model("llama"), "tokenizer": models.tiny_tokenizer()}
    block = next(block for block in blocks(ROOT / "README.md", "python") if "sparsebench.evaluate" in block)
    exec(compile(block, "README.md", "exec"), names)
    assert set(names["table"]["method"]) == {"dense", "wanda", "magnitude"}
    assert not (names["table"]["verdict"] == "failed").any()
