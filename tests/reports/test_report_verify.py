import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_results import CHOICE, LEVELS, PPL, QA, SyntheticMethod, Writer, write_suite

from sparsebench.reports.verify import Finding, passed, text, verify
from sparsebench.store import Store, StoredCell

METHOD = SyntheticMethod("method", "pruning", LEVELS, 0.5)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    store = Store.create(tmp_path / "run")
    write_suite(store)
    return Writer(store, samples=120)


def errors(writer: Writer) -> list[Finding]:
    return [finding for finding in verify(writer.store.root) if finding.severity == "error"]


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_honest_results_pass_and_what_cannot_be_checked_is_named(results: Path) -> None:
    findings = verify(results)
    (called,) = [f for f in findings if f.severity == "error"]
    assert called.check == "placement" and "script" in called.message, "only the cell with a hostile label is amiss"
    assert sum(f.severity == "ok" for f in findings) == len(Store.open(results).ids()) - 1
    assert any("fingerprints" in f.message for f in findings if f.severity == "cannot check")
    assert any(f.check == "names" and "markup" in f.message for f in findings)
    assert text(findings).splitlines()[-1].startswith("1 error,")


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("record.json", lambda d: d["outcome"]["metrics"][0].update(value=0.99), "its samples give"),
        ("record.json", lambda d: d["outcome"]["metrics"][0].update(n=3), "recorded with n = 3"),
        (
            "record.json",
            lambda d: d["outcome"]["metrics"][0]["metric"].update(column="nothing"),
            "no numbers in a column",
        ),
        ("record.json", lambda d: d.update(samples_sha256="0" * 64), "not the file that was recorded"),
        ("record.json", lambda d: d.update(samples_sha256=None), "no samples were stored"),
        ("record.json", lambda d: d.update(schema_version=99), "newer"),
        ("record.json", lambda d: d.update(cell="0" * 16), "is the record of cell"),
        ("record.json", lambda d: d["outcome"].update(sparsity=1.5), "outside 0 to 1"),
        ("record.json", lambda d: d["outcome"]["densities"].update(pairs=-0.5), "outside 0 to 1"),
        ("record.json", lambda d: d["outcome"].update(flops=1e12), "times the dense"),
        ("record.json", lambda d: d["outcome"].update(flops=-1.0), "FLOPs -1.0"),
        ("record.json", lambda d: d["outcome"].update(seconds=-1.0), "seconds is -1"),
        ("record.json", lambda d: d["outcome"].update(speed={"tokens_per_second": 9.0}), "simulated cell with a speed"),
        ("record.json", lambda d: d["outcome"].update(metrics=[]), "no metric"),
        ("record.json", lambda d: d["placement"].update(baseline="0" * 16), "not among the results"),
        ("spec.json", lambda d: d.update(seed=5), "describes cell"),
        ("spec.json", lambda d: d["task"].update(data="other"), "describes cell"),
        ("env.json", lambda d: d.clear(), "hardware"),
    ],
)
def test_edited_cells_are_found(writer: Writer, file: str, change: Any, named: str) -> None:
    base = writer.cell(CHOICE, "pruning")
    cell = writer.cell(CHOICE, "pruning", method=METHOD, baseline=base.id, role="method", damage=0.1)
    assert not errors(writer)
    edit(cell.folder / file, change)
    found = errors(writer)
    assert {f.subject for f in found} == {cell.id} and named in found[0].message


def test_work_of_a_methods_own_may_outweigh_its_zeros(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    cell = writer.cell(CHOICE, "pruning", method=METHOD, baseline=base.id, role="method", damage=0.1)
    path = cell.folder / "record.json"
    counters = {"prefill.activation.total": 100.0, "prefill.activation.zeros": -5.0, "prefill.activation.added": 20.0}
    edit(path, lambda d: d["outcome"].update(counters=counters, sparsity=None))
    assert not [f for f in errors(writer) if "activation.zeros" in f.message]
    edit(path, lambda d: d["outcome"]["counters"].update({"prefill.activation.zeros": -25.0}))
    assert [f for f in errors(writer) if "activation.zeros is -5" in f.message]
    edit(path, lambda d: d["outcome"]["counters"].update({"prefill.activation.zeros": 5.0}))
    edit(path, lambda d: d["outcome"].update(sparsity=-0.3))
    assert [f for f in errors(writer) if "outside 0 to 1" in f.message]


@pytest.mark.parametrize("file", ["record.json", "spec.json", "env.json", "samples.parquet"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_files_that_are_cut_short_or_gone_are_found(writer: Writer, file: str, how: str) -> None:
    cell = writer.cell(CHOICE, "pruning")
    path = cell.folder / file
    if how == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        path.unlink()
    found = errors(writer)
    assert len(found) == 1 and found[0].subject == cell.id and file.split(".")[0] in found[0].message


def test_edited_samples_are_found(writer: Writer) -> None:
    cell = writer.cell(CHOICE, "pruning")
    frame = cell.samples()
    assert frame is not None
    frame.assign(correct=1.0).to_parquet(cell.folder / "samples.parquet")
    (found,) = errors(writer)
    assert found.check == "samples"


def with_table(cell: StoredCell, table: pa.Table) -> None:
    """Give a cell other samples, and its record their hash."""
    path = cell.folder / "samples.parquet"
    pq.write_table(table, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(cell.folder / "record.json", lambda d: d.update(samples_sha256=digest))


def test_numbers_that_no_float_holds_are_found(writer: Writer) -> None:
    cell = writer.cell(CHOICE, "pruning")
    edit(cell.folder / "record.json", lambda d: d["outcome"].update(peak_memory=10**400))
    (found,) = errors(writer)
    assert "a whole number of 1329 bits" in found.message
    edit(cell.folder / "record.json", lambda d: d["outcome"].update(peak_memory=10**20))
    assert not errors(writer)


def test_samples_that_are_no_table_of_samples_are_found(writer: Writer) -> None:
    cell = writer.cell(CHOICE, "pruning")
    table = pq.read_table(cell.folder / "samples.parquet")
    lists = pa.array([[name] for name in table.column("sample").to_pylist()])
    with_table(cell, table.set_column(table.column_names.index("sample"), "sample", lists))
    (found,) = errors(writer)
    assert found.check == "samples" and "column `sample` holds no texts" in found.message
    with_table(cell, table.append_column("correct", table.column("correct")))
    (found,) = errors(writer)
    assert found.check == "samples" and "a column twice: 'correct'" in found.message


def test_files_of_a_run_are_no_strangers(writer: Writer) -> None:
    writer.cell(CHOICE, "pruning")
    for name in (".whole", ".leases"):
        (writer.store.cells_folder / name).touch()
    assert "not read" not in text(verify(writer.store.root))
    (writer.store.cells_folder / "notes.txt").touch()
    assert "no cell has them: notes.txt" in text(verify(writer.store.root))


def test_dense_may_be_compared_with_another_row(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning", method=METHOD, role="baseline")
    writer.cell(CHOICE, "pruning", baseline=base.id, role="comparator")
    assert not [f for f in errors(writer) if f.check in ("placement", "baseline")]


def test_a_hash_that_was_edited_with_the_samples_does_not_hide_the_value(writer: Writer) -> None:
    cell = writer.cell(CHOICE, "pruning")
    frame = cell.samples()
    assert frame is not None
    with_table(cell, pa.Table.from_pandas(frame.assign(correct=1.0)))
    assert any("its samples give 1.0" in f.message for f in errors(writer))


def test_baselines_with_other_samples_are_found(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    frame = base.samples()
    assert frame is not None
    writer.cell(CHOICE, "pruning", method=METHOD, baseline=base.id, role="method", frame=frame.iloc[:-5])
    (found,) = errors(writer)
    assert found.check == "baseline" and "5 of the baseline's are missing" in found.message


def test_baselines_of_other_tasks_and_failed_ones_are_found(writer: Writer) -> None:
    base = writer.cell(PPL, "pruning")
    writer.cell(CHOICE, "pruning", method=METHOD, baseline=base.id, role="method")
    failed = writer.cell(QA, "pruning", status="failed", metrics=[], error="out of memory")
    writer.cell(QA, "pruning", method=METHOD, baseline=failed.id, role="method")
    messages = [f.message for f in errors(writer)]
    assert any("other task" in m for m in messages) and any("failed" in m for m in messages)


def test_copied_outputs_are_found(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    one = writer.cell(CHOICE, "pruning", method=METHOD, budget=4, baseline=base.id, role="method", damage=0.4)
    other = SyntheticMethod("other", "pruning", LEVELS, 0.5)
    frame = one.samples()
    assert frame is not None
    writer.cell(
        CHOICE, "pruning", method=other, baseline=base.id, role="method", frame=frame.sample(frac=1, random_state=1)
    )
    (found,) = errors(writer)
    assert found.check == "copies" and "method" in found.message and "other" in found.message


def test_methods_that_changed_nothing_are_not_accused(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    for name in ("one", "two"):
        writer.cell(
            CHOICE,
            "pruning",
            method=SyntheticMethod(name, "pruning", LEVELS, 0),
            baseline=base.id,
            role="method",
            frame=base.samples(),
        )
    findings = verify(writer.store.root)
    assert passed(findings)
    assert [f.check for f in findings if f.severity == "cannot check" and "outputs" in f.message] == ["copies"]


def test_texts_against_the_licence_are_found(writer: Writer) -> None:
    frame = writer.cell(CHOICE, "pruning").samples()
    assert frame is not None
    writer.cell(CHOICE, "pruning", seed=1, frame=frame.assign(response="what the model said"))
    assert not errors(writer)
    writer.cell(CHOICE, "pruning", seed=2, frame=frame.assign(target="what the data holds"))
    (found,) = errors(writer)
    assert found.check == "licence"


def test_rules_that_no_report_can_follow_are_errors(writer: Writer) -> None:
    writer.cell(CHOICE, "pruning")
    suite = json.loads((writer.store.root / "suite.json").read_text())
    suite["suite"]["conclude"] = {**suite["suite"].get("conclude", {}), "resamples": 10**15}
    (writer.store.root / "suite.json").write_text(json.dumps(suite))
    assert any("conclude.resamples" in f.message for f in errors(writer))


def test_links_and_unknown_suites(writer: Writer) -> None:
    cell = writer.cell(CHOICE, "pruning")
    shutil.move(cell.folder / "env.json", writer.store.root / "env.json")
    (cell.folder / "env.json").symlink_to(writer.store.root / "env.json")
    (writer.store.root / "suite.json").unlink()
    findings = verify(writer.store.root)
    assert any("env.json: is a link" in f.message for f in findings if f.severity == "error")
    assert any(f.check == "suite" for f in findings if f.severity == "cannot check")
