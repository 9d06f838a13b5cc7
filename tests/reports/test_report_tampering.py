"""Thirty-odd ways to make results say what they do not: each is found, or named as what cannot be checked."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sparsebench.cost import ModelShape
from sparsebench.identity import cell_id
from sparsebench.reports.verify import Finding, verify
from sparsebench.sample_tables import read_table
from sparsebench.store import Store

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "results" / "knowledge.tar.xz"
SHAPE = ModelShape(576, 30, 9, 3, 64, 64, 49152, 106168320, 106168320, 28311552, 134515008, (None,) * 30)
KEPT_OF_FACTS = ("dense", "wanda 60%")
KEPT = ("dense", "dense (A/A float32)", "wanda 10%", "wanda 60%", "teal 30%")

pytestmark = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published results are not here")


def samples_of(folder: Path) -> pd.DataFrame:
    """The samples of a cell."""
    return read_table((folder / "samples.parquet").read_bytes(), "samples").to_pandas()


@dataclass
class Results:
    """A copy of published results that may be tampered with."""

    root: Path

    def cell(self, label: str, task: str = "wikitext2-perplexity") -> Path:
        (found,) = [
            c.folder for c in Store.open(self.root) if c.record.placement.label == label and c.spec.task.id == task
        ]
        return found

    def record(self, label: str, change: Callable[[dict[str, Any]], Any], task: str = "wikitext2-perplexity") -> None:
        edit(self.cell(label, task) / "record.json", change)

    def samples(
        self,
        label: str,
        change: Callable[[pd.DataFrame], pd.DataFrame],
        task: str = "wikitext2-perplexity",
        values: bool = True,
    ) -> None:
        """Change samples, with the hash and (if `values`) every metric made to fit."""
        folder = self.cell(label, task)
        frame = change(samples_of(folder))
        frame.to_parquet(folder / "samples.parquet", index=False)
        digest = hashlib.sha256((folder / "samples.parquet").read_bytes()).hexdigest()
        edit(folder / "record.json", lambda d: d.update(samples_sha256=digest))
        if values:
            cell = next(c for c in Store.open(self.root) if c.folder.name == folder.name)
            fitted = {
                m.metric.name: (m.metric.value(frame), int(frame[m.metric.column].notna().sum()))
                for m in cell.record.outcome.metrics
            }

            def fit(data: dict[str, Any]) -> None:
                for metric in data["outcome"]["metrics"]:
                    metric["value"], metric["n"] = fitted[metric["metric"]["name"]]

            edit(folder / "record.json", fit)

    def respecify(self, label: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a specification, with the id, the folder and the record made to fit."""
        folder = self.cell(label)
        edit(folder / "spec.json", change)
        identity = cell_id(json.loads((folder / "spec.json").read_text()))
        edit(folder / "record.json", lambda d: d.update(cell=identity))
        folder.rename(folder.parent / identity)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def reduced(suite: dict[str, Any]) -> None:
    """Leave of a suite what the copied cells are."""
    weights, activations = suite["suite"]["grids"]
    weights["methods"] = [
        m
        for m in weights["methods"]
        if m["method"] in ("dense", "wanda") and not (m["noise"] or {}).get("batch_tokens")
    ]
    weights["methods"][-1]["budgets"] = {"sparsity": [0.1, 0.6]}
    activations["methods"] = [m for m in activations["methods"] if m["method"] in ("dense", "teal")]
    activations["methods"][-1]["budgets"] = {"sparsity": [0.3]}
    activations["tasks"] = activations["tasks"][1:]
    facts = json.loads(json.dumps({**weights, "name": "facts", "tasks": weights["tasks"][:1]}))
    facts["methods"] = [m for m in facts["methods"] if not m["noise"]]
    facts["methods"][-1]["budgets"] = {"sparsity": [0.6]}
    weights["tasks"] = weights["tasks"][1:]
    suite["suite"]["grids"].append(facts)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published") / "knowledge"
    (root / "cells").mkdir(parents=True)
    shutil.copy(Store.open(PUBLISHED).root / "suite.json", root / "suite.json")
    edit(root / "suite.json", reduced)
    for cell in Store.open(PUBLISHED):
        kept = KEPT_OF_FACTS if cell.spec.task.id == "qa-wikidata" else KEPT
        if cell.record.placement.label in kept:
            shutil.copytree(cell.folder, root / "cells" / cell.id)
            sizes = json.loads(json.dumps(asdict(SHAPE)))
            edit(root / "cells" / cell.id / "record.json", lambda d, s=sizes: d["system"].update(shape=s))
    return root


@pytest.fixture
def results(published: Path, tmp_path: Path) -> Results:
    shutil.copytree(published, tmp_path / "knowledge")
    return Results(tmp_path / "knowledge")


def found(results: Results) -> list[Finding]:
    return [f for f in verify(results.root) if f.severity == "error"]


def test_untouched_results_pass(results: Results) -> None:
    assert found(results) == []


def metric(data: dict[str, Any]) -> dict[str, Any]:
    return data["outcome"]["metrics"][0]["metric"]  # type: ignore[no-any-return]


TAMPERED: dict[str, tuple[Callable[[Results], Any], str]] = {
    "an edited score": (lambda r: r.record("wanda 60%", lambda d: d["outcome"]["metrics"][0].update(value=24.9)), "its samples give"),
    "an edited number of samples": (lambda r: r.record("wanda 60%", lambda d: d["outcome"]["metrics"][0].update(n=9999)), "recorded with n"),
    "an edited hash": (lambda r: r.record("wanda 60%", lambda d: d.update(samples_sha256="0" * 64)), "not the file that was recorded"),
    "edited samples": (lambda r: r.samples("wanda 60%", lambda f: f.assign(nll=f["nll"] * 0.7), values=False), "its samples give"),
    "dropped hard samples": (lambda r: r.samples("wanda 60%", lambda f: f.sort_values("nll").iloc[:250]), "of the baseline's are missing"),
    "samples dropped from all rows alike": (
        lambda r: [r.samples(k, lambda f: f.iloc[:200]) for k in KEPT],
        "were scored",
    ),
    "answers dropped from all rows alike": (
        lambda r: [r.samples(k, lambda f: f.iloc[:5000], "qa-wikidata") for k in KEPT_OF_FACTS],
        "the counters are of",
    ),
    "a sample that comes twice": (lambda r: r.samples("wanda 60%", lambda f: pd.concat([f.iloc[:-1], f.iloc[:1]])), "comes twice"),
    "a swapped dense row": (
        lambda r: r.samples("dense", lambda f: samples_of(r.cell("wanda 60%"))),
        "of the A/A row",
    ),
    "another cell as the baseline": (
        lambda r: r.record("wanda 10%", lambda d: d["placement"].update(baseline=r.cell("wanda 60%").name)),
        "its baseline",
    ),
    "a method in the role of the baseline": (
        lambda r: r.record("wanda 60%", lambda d: d["placement"].update(role="baseline")),
        "a baseline that is compared with another cell",
    ),
    "an edited sparsity": (lambda r: r.record("teal 30%", lambda d: d["outcome"].update(sparsity=0.6)), "its counters give"),
    "an edited counter": (
        lambda r: r.record("teal 30%", lambda d: d["outcome"]["counters"].update({"prefill.activation.zeros": 2e13})),
        "its counters give",
    ),
    "more parts than the whole": (
        lambda r: r.record("teal 30%", lambda d: d["outcome"]["counters"].update({"prefill.activation.zeros": 9e13})),
        "is more than",
    ),
    "edited FLOPs": (lambda r: r.record("teal 30%", lambda d: d["outcome"].update(flops=1e13)), "FLOPs are recorded"),
    "edited dense FLOPs": (lambda r: r.record("teal 30%", lambda d: d["outcome"].update(flops_dense=2e14)), "dense FLOPs are recorded"),
    "edited bytes": (
        lambda r: r.record("wanda 60%", lambda d: d["outcome"].update(bytes_per_token=1e7), "qa-wikidata"),
        "bytes a token are recorded",
    ),
    "edited sizes of the model": (
        lambda r: r.record("teal 30%", lambda d: d["system"]["shape"].update(linear_params="many")),
        "no size",
    ),
    "an invented speed": (lambda r: r.record("teal 30%", lambda d: d["outcome"].update(speed={"tokens_per_second": 900.0})), "simulated cell with a speed"),
    "a regression called not exercised": (lambda r: r.record("teal 30%", lambda d: d["outcome"].update(exercised=False)), "its counters say exercised"),
    "a method called a control": (lambda r: r.record("wanda 60%", lambda d: d["placement"].update(role="control")), "wanda is a method"),
    "a bold label": (lambda r: r.record("wanda 10%", lambda d: d["placement"].update(label="wanda 60%")), "its specification is of 'wanda 10%'"),
    "a metric turned round": (lambda r: r.record("wanda 60%", lambda d: metric(d).update(higher_is_better=True)), "is not the task's"),
    "a headline that is none": (lambda r: r.record("wanda 60%", lambda d: metric(d).update(headline=False)), "other headline"),
    "a metric left out": (lambda r: r.record("wanda 60%", lambda d: d["outcome"]["metrics"].pop(0)), "is missing"),
    "copied outputs": (
        lambda r: r.samples("teal 30%", lambda f: samples_of(r.cell("wanda 60%"))),
        "same outputs",
    ),
    "wrong answers called right": (
        lambda r: r.samples("wanda 60%", lambda f: f.assign(empty=1 - f["empty"]), "qa-wikidata"),
        "their answers say otherwise",
    ),
    "right answers called wrong": (
        lambda r: r.samples("dense", lambda f: f.assign(correct=0.0), "qa-wikidata"),
        "their answer is the target",
    ),
    "an edited specification": (lambda r: edit(r.cell("wanda 60%") / "spec.json", lambda d: d["stack"][0]["budget"].update(sparsity=0.9)), "describes cell"),
    "a bold specification, id and all": (
        lambda r: r.respecify("wanda 10%", lambda d: d["stack"][0]["budget"].update(sparsity=0.9)),
        "its specification is of 'wanda 90%'",
    ),
    "other data, id and all": (lambda r: r.respecify("wanda 10%", lambda d: d["task"].update(data="mine")), "that the lock resolved"),
    "another model, id and all": (lambda r: r.respecify("wanda 10%", lambda d: d["system"].update(fingerprint="mine")), "another model"),
    "another calibration text, id and all": (
        lambda r: r.respecify("wanda 10%", lambda d: d["calibration"].update(hash="mine")),
        "calibration text is not the one",
    ),
    "a cell left out": (lambda r: shutil.rmtree(r.cell("wanda 60%")), "missing: wanda 60% on wikitext2-perplexity"),
    "the noise rows left out": (lambda r: shutil.rmtree(r.cell("dense (A/A float32)")), "an A/A row"),
    "the dense row left out": (lambda r: shutil.rmtree(r.cell("dense")), "is not among the results"),
    "a wide margin": (
        lambda r: edit(r.root / "suite.json", lambda d: d["suite"]["conclude"]["margins"]["qa-wikidata"]["*"].update(relative=0.9)),
        "other margins",
    ),
    "a future schema": (lambda r: r.record("wanda 60%", lambda d: d.update(schema_version=99)), "newer"),
    "fields that the schema has not": (lambda r: r.record("wanda 60%", lambda d: d["outcome"].update(better=True)), "Extra inputs"),
    "no number": (lambda r: r.record("wanda 60%", lambda d: d["outcome"].update(flops=float("nan"))), "not JSON"),
    "a link instead of a file": (lambda r: linked(r.cell("wanda 60%") / "env.json", r.root), "env.json: is a link"),
    "a link instead of a cell": (lambda r: linked(r.cell("wanda 60%"), r.root), "links instead of files"),
    "a file cut short": (
        lambda r: (r.cell("wanda 60%") / "samples.parquet").write_bytes((r.cell("wanda 60%") / "samples.parquet").read_bytes()[:99]),
        "not the file that was recorded",
    ),
    "no samples at all": (lambda r: (r.cell("wanda 60%") / "samples.parquet").unlink(), "missing"),
    "a pickle for samples": (lambda r: r.samples("wanda 60%", lambda f: f) or pickled(r), "cannot be read"),
}  # fmt: skip


def linked(place: Path, away: Path) -> None:
    moved = shutil.move(place, away / "moved")
    place.symlink_to(moved)


def pickled(results: Results) -> None:
    folder = results.cell("wanda 60%")
    content = b"\x80\x04cos\nsystem\n(S'false'\ntR."
    (folder / "samples.parquet").write_bytes(content)
    edit(folder / "record.json", lambda d: d.update(samples_sha256=hashlib.sha256(content).hexdigest()))


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(TAMPERED) >= 30


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampering_is_found(results: Results, kind: str) -> None:
    tamper, named = TAMPERED[kind]
    tamper(results)
    messages = [f.message for f in found(results)]
    assert any(named in message for message in messages), messages


UNCHECKABLE: dict[str, tuple[Callable[[Results], Any], str]] = {
    "markup in a name": (
        lambda r: edit(r.cell("wanda 60%") / "env.json", lambda d: d.update(hardware="<script>alert(1)</script>")),
        "markup",
    ),
    "direction characters in a name": (
        lambda r: edit(r.cell("wanda 60%") / "env.json", lambda d: d.update(hardware="\u202egnp.exe")),
        "direction characters",
    ),
    "path tricks in a name": (lambda r: (r.root / "cells" / "..%2f..").mkdir(), "not read"),
    "a file beside the cell's": (lambda r: (r.cell("wanda 60%") / "run.py").write_text("import os"), "not read"),
    "a licence left out": (lambda r: r.record("wanda 60%", lambda d: d["data"][0].update(license="")), "no licence"),
    "no commit": (lambda r: None, "do not name the commit"),
    "an edited time": (lambda r: r.record("wanda 60%", lambda d: d["outcome"].update(prepare_seconds=0.1)), "times and memory"),
    "a suite without its grids": (lambda r: edit(r.root / "suite.json", lambda d: d["suite"].pop("grids")), "completeness is not known"),
    "sizes left out": (lambda r: r.record("teal 30%", lambda d: d["system"].pop("shape")), "no sizes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNCHECKABLE)
def test_what_cannot_be_checked_is_named(results: Results, kind: str) -> None:
    tamper, named = UNCHECKABLE[kind]
    tamper(results)
    findings = verify(results.root)
    assert any(named in f.message for f in findings if f.severity == "cannot check"), findings
    assert not [f for f in findings if f.severity == "error"]
