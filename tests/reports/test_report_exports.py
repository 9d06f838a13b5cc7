import math
from pathlib import Path

import pytest
import yaml
from synthetic_results import HOSTILE, LEVELS, PPL, QA, SyntheticMethod, Writer, write_suite

from sparsebench.reports.check import compare
from sparsebench.reports.lm_eval_files import read_log
from sparsebench.reports.lm_eval_out import write_logs
from sparsebench.reports.model_card import model_card
from sparsebench.store import Store

METHOD = SyntheticMethod("method", "pruning", LEVELS[:2], 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(tmp_path_factory.mktemp("exports") / "run")
    write_suite(store)
    Writer(store, samples=200).grid("pruning", (METHOD,), (QA, PPL))
    return store.root


def test_what_is_written_for_lm_eval_reads_back_with_its_values(folder: Path, tmp_path: Path) -> None:
    written = write_logs([folder], tmp_path / "logs")
    assert len(written) == len({path.parent for path in written}) == 4, "dense, its noise row, and two levels"
    values = {
        (cell.record.placement.label, m.metric.name): m.value
        for cell in Store.open(folder)
        for m in cell.record.outcome.metrics
    }
    seen = set()
    for path in written:
        for task in read_log(path).values():
            label = task.model.split(" ", 1)[1]
            for metric in task.metrics:
                if (label, metric.name) in values:
                    assert metric.value(task.samples.frame) == pytest.approx(values[label, metric.name])
                    seen.add((label, metric.name))
    assert seen == set(values)


def test_two_exported_logs_are_compared_as_their_cells_are(folder: Path, tmp_path: Path) -> None:
    places = {p.parent.name: p for p in write_logs([folder], tmp_path / "logs")}
    dense = next(
        p for name, p in places.items() if name.startswith("dense-") and "a-a" not in name and "bfloat" not in name
    )
    sparse = next(p for name, p in places.items() if name.startswith("method-20"))
    result = compare(dense, sparse, margin=0.05)
    perplexity = next(row for row in result.rows if row.what == "perplexity" and row.judgement)
    assert perplexity.verdict in ("regressed", "non-inferior", "inconclusive", "improved")
    assert perplexity.judgement is not None and perplexity.judgement.comparison is not None
    assert perplexity.judgement.comparison.n == 200


def test_metrics_with_a_part_of_the_samples_are_tasks_of_their_own(folder: Path, tmp_path: Path) -> None:
    names = {name for path in write_logs([folder], tmp_path / "logs") for name in read_log(path)}
    assert "facts-qa" in names and any(name.startswith("facts-qa-non-prior") for name in names)


def test_the_same_results_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_logs([folder], tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_names_make_no_paths(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run")
    write_suite(store)
    writer = Writer(store, samples=30)
    writer.cell(PPL, "pruning", label="../../away", config=HOSTILE)
    (written,) = write_logs([store.root], tmp_path / "logs")
    assert written.resolve().is_relative_to((tmp_path / "logs").resolve())


def test_a_model_card_has_what_the_hub_reads(folder: Path) -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    text = model_card([folder])
    assert text.startswith("---\n") and text.endswith("---\n")
    index = yaml.safe_load(text.strip("-\n"))["model-index"]
    assert {entry["name"].split(" ", 1)[1] for entry in index} == {"dense", "method 10%", "method 20%"}
    _, found = model_index_to_eval_results([index[1]])
    metric = next(r for r in found if r.metric_name == "perplexity")
    assert metric.dataset_revision == "data-prose-perplexity" and metric.metric_args["n"] == 200
    assert math.isfinite(metric.metric_value) and metric.metric_args["verdict"]
    assert text == model_card([folder])
