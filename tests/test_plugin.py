"""A method from another package: a class of at most forty lines and one entry point, found, listed and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import models
import pytest
from documents import ROOT, blocks

from sparsebench.store import Store

PLUGIN = Path(__file__).parent / "plugin"
METHOD = "relative-importance"

SUITE = """\
suite: with-plugins
version: 1
systems:
  tiny: {model: "path:MODEL", dtype: float32}
calibration:
  prose: {data: prose, sequences: 4, length: 128}
grids:
  - name: weights
    system: tiny
    calibration: prose
    tasks: [{task: prose-perplexity, limit: 2}]
    methods:
      - {method: relative-importance, budgets: {sparsity: 0.5, pattern: "2:4"}}
      - {method: input-variance, budgets: {sparsity: 0.5}}
  - name: decoding
    system: tiny
    tasks: [{task: prose-continuation, limit: 1}]
    methods:
      - {method: recent-only, budgets: {sparsity: 0.5}}
      - {method: loudest, budgets: {sparsity: [0.5]}}
"""


def python(code: str, *arguments: str, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that has `path` among its packages."""
    beside = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *([beside] if beside else [])])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def sparsebench(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that has `path` among its packages."""
    return python("from sparsebench.cli import main; main()", *arguments, path=path, cwd=path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the plugin was installed into with pip, and that has the examples of docs/adapters.md beside it."""
    target = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(PLUGIN)], check=True)
    for number, code in enumerate(blocks(ROOT / "docs" / "adapters.md", "python")):
        (target / f"example{number}.py").write_text(code)
        method, name = re.search(r'id="(.+?)"', code), re.search(r"^class (\w+)", code, re.MULTILINE)
        assert method and name
        distribution(target, f"example{number}", f"{method[1]} = example{number}:{name[1]}")
    return target


def distribution(folder: Path, name: str, entry: str) -> None:
    """An installed package that has an adapter's entry point and nothing else."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sparsebench.adapters]\n{entry}\n")


def test_the_example_is_short_and_the_readmes() -> None:
    code = (PLUGIN / "sparsebench_relative_importance.py").read_text()
    assert len(code.splitlines()) <= 40
    assert code in blocks(ROOT / "README.md", "python")


def test_a_plugin_is_listed_and_shown(packages: Path) -> None:
    listed = sparsebench("list", "adapters", "--json", path=packages)
    assert listed.returncode == 0, listed.stderr
    row = next(row for row in json.loads(listed.stdout) if row["id"] == METHOD)
    assert row["family"] == "pruning"
    assert row["title"] == "Relative importance"
    families = {row["id"]: row["family"] for row in json.loads(listed.stdout)}
    assert (families["loudest"], families["largest-terms"]) == ("activation", "retrieval")
    shown = sparsebench("show", METHOD, path=packages)
    assert "Plug-and-Play" in shown.stdout, shown.stderr


def test_plugins_run_in_a_suite(packages: Path, tmp_path: Path) -> None:
    models.tiny_model("llama").save_pretrained(tmp_path / "model")
    models.tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "suite.yaml").write_text(SUITE.replace("MODEL", str(tmp_path / "model")))
    ran = python("import sparsebench.api; sparsebench.api.run('suite.yaml', 'results')", path=packages, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr

    cells = list(Store.open(tmp_path / "results"))
    assert {cell.record.outcome.error for cell in cells} == {None}
    sparse = {cell.record.placement.label: cell.record.outcome for cell in cells if cell.spec.stack}
    assert set(sparse) == {f"{METHOD} 50%", f"{METHOD} 2:4", "input-variance 50%", "recent-only 50%", "loudest 50%"}
    for label, outcome in sparse.items():
        assert outcome.sparsity == pytest.approx(0.5, abs=0.01), label
        assert outcome.exercised, label
    assert sparse["recent-only 50%"].phase == "decode"
    assert len({cell.record.outcome.metrics[0].value for cell in cells}) == 7, "each changes the result"
    code = {cell.record.placement.label: cell.spec.stack[0].code for cell in cells if cell.spec.stack}
    assert code["loudest 50%"].startswith("example") and len(set(code.values())) == 4  # one method is there twice
    named = next(cell.environment.packages for cell in cells if cell.record.placement.label == "loudest 50%")
    assert named[code["loudest 50%"].split()[0]] == "1.0"


PLAN = """
import json
from sparsebench.plan import plan
from sparsebench.suite_source import load_suite
print(json.dumps({cell.placement.label: cell.id for cell in plan(load_suite("suite.yaml")).cells}))
"""


def test_edited_methods_are_others(packages: Path, tmp_path: Path) -> None:
    models.tiny_model("llama").save_pretrained(tmp_path / "model")
    models.tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "suite.yaml").write_text(SUITE.replace("MODEL", str(tmp_path / "model")))
    shutil.copytree(packages, tmp_path / "packages")

    def planned() -> dict[str, str]:
        ran = python(PLAN, path=tmp_path / "packages", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        ids: dict[str, str] = json.loads(ran.stdout)
        return ids

    before = planned()
    assert planned() == before
    edited = next(f for f in (tmp_path / "packages").glob("*.py") if 'id="loudest"' in f.read_text())
    edited.write_text(edited.read_text() + "# edited\n")
    after = planned()
    assert {label for label in before if before[label] != after[label]} == {"loudest 50%"}


POISON = """\
from contextlib import contextmanager

from sparsebench.adapters import MethodCard
from sparsebench.adapters.pruning.base import PruningAdapter


class Poison(PruningAdapter):
    \"\"\"Halves all norms for good.\"\"\"

    card = MethodCard(
        id="a-poison", family="pruning", title="Poison", summary="Harms.", role="control", unit="weight"
    )

    def score(self, layer):
        return layer.weight.abs()

    @contextmanager
    def attach(self, system, prepared, budget):
        with super().attach(system, prepared, budget):
            for name, parameter in system.model.named_parameters():
                if "norm" in name:
                    parameter.data.mul_(0.5)
            yield system
"""
AFTER_POISON = """\
suite: with-poison
version: 1
systems:
  tiny: {model: "path:MODEL", dtype: float32}
grids:
  - name: weights
    system: tiny
    tasks: [{task: prose-perplexity, limit: 2}]
    methods:
      - {method: a-poison, budgets: {sparsity: 0.5}}
      - {method: magnitude, budgets: {sparsity: [0.5, 0.6]}}
"""


def test_a_plugin_that_spoils_the_model_harms_itself_alone_in_workers_too(tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    distribution(tmp_path, "poison", "a-poison = poison:Poison")
    models.tiny_model("llama").save_pretrained(tmp_path / "model")
    models.tiny_tokenizer().save_pretrained(tmp_path / "model")
    suite = AFTER_POISON.replace("MODEL", str(tmp_path / "model"))
    (tmp_path / "suite.yaml").write_text(suite)
    (tmp_path / "without.yaml").write_text(suite.replace("      - {method: a-poison, budgets: {sparsity: 0.5}}\n", ""))
    found = {}
    for name, code in (("suite", 3), ("without", 0)):
        options = ("--out", str(tmp_path / name), "--executor", "process", "--workers", "1", "--no-site")
        ran = sparsebench("run", f"{name}.yaml", *options, path=tmp_path)
        assert ran.returncode == code, ran.stderr
        found[name] = {
            cell.record.placement.label: [value.value for value in cell.record.outcome.metrics]
            for cell in Store.open(tmp_path / name)
        }
    assert found["suite"].pop("a-poison 50%") == []
    assert found["suite"] == found["without"]


def test_a_broken_plugin_is_a_warning(tmp_path: Path) -> None:
    broken = {
        "missing = package_that_is_not_there:Method": "package_that_is_not_there",
        "foreign = json:JSONDecoder": "not an Adapter",
        "renamed = sparsebench.adapters.pruning.magnitude:Magnitude": "'magnitude'",
    }
    for number, entry in enumerate(broken):
        distribution(tmp_path, f"broken{number}", entry)
    listed = sparsebench("list", "adapters", "--json", path=tmp_path)
    assert listed.returncode == 0, listed.stderr
    ids = {row["id"] for row in json.loads(listed.stdout)}
    assert "wanda" in ids
    for entry, reason in broken.items():
        name = entry.partition(" ")[0]
        assert name not in ids
        assert re.search(f"{name!r} left out: .*{reason}", listed.stderr)
    other = sparsebench("show", "wanda", path=tmp_path)
    assert (other.returncode, other.stderr) == (0, "")


def test_a_plugin_does_not_replace_a_method_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "thief.py").write_text("raise RuntimeError\n")
    distribution(tmp_path, "thief", "wanda = thief:Wanda")
    shown = sparsebench("show", "wanda", path=tmp_path)
    assert shown.returncode == 0
    assert "Mingjie Sun" in shown.stdout
