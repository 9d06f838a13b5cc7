import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_results import CHOICE, HOSTILE, LEVELS, LM, PPL, QA, SyntheticMethod, Writer, put_again, write_suite

from sparsebench import cli
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.identity import cell_id
from sparsebench.records import Outcome
from sparsebench.reports import gate_formats
from sparsebench.reports.check import CheckResult, check, compare
from sparsebench.store import Store, StoredCell

METHODS = tuple(SyntheticMethod(f"method-{k}", "pruning", LEVELS, 0.3) for k in range(3))


def run(
    folder: Path, damage: float = 0.0, fingerprint: str = LM.fingerprint, samples: int = 300, **changes: Any
) -> Writer:
    """A small results folder; `damage` is what the methods do beyond their own."""
    store = Store.create(folder)
    write_suite(store)
    writer = Writer(store, samples=samples)
    for task in (CHOICE, PPL):
        base = writer.cell(task, "pruning")
        for k, method in enumerate(METHODS):
            frame = base.samples()
            assert frame is not None
            column = task.metrics[0].column
            rng = np.random.default_rng(k)
            if task is CHOICE:
                hurt = rng.random(len(frame)) < 0.05 + damage
                frame[column] = np.where(hurt, rng.integers(0, 2, len(frame)) * (1 - damage), frame[column]).round()
            else:
                frame[column] += (rng.normal(0, 0.01, len(frame)) + damage) * frame[f"{column}.weight"]
            writer.cell(
                task, "pruning", method=method, budget=k, baseline=base.id, role="method", frame=frame, **changes
            )
    if fingerprint != LM.fingerprint:
        for cell in list(store):
            respecify(store, cell, fingerprint=fingerprint)
    return writer


def respecify(store: Store, cell: StoredCell, **system: Any) -> None:
    """Store a cell again with another system, under its new id."""
    spec = cell.spec.model_copy(update={"system": cell.spec.system.model_copy(update=system)})
    record = cell.record.model_copy(update={"cell": cell_id(spec.plain())})
    store.write(spec, record, cell.environment, cell.samples())
    shutil.rmtree(cell.folder)


def verdicts(result: CheckResult, tier: str) -> set[str]:
    return {row.verdict for row in result.rows if row.tier == tier}


def test_the_same_results_pass(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b")
    result = check(tmp_path / "a", tmp_path / "b")
    assert result.passed and not result.notes
    assert verdicts(result, "quality") == {"same"} and verdicts(result, "exact") == {"same"}
    assert check(tmp_path / "a", tmp_path / "a", strict=True).passed


def test_a_loss_fails(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", damage=0.4)
    result = check(tmp_path / "a", tmp_path / "b")
    assert not result.passed
    assert {(row.tier, row.verdict) for row in result.failures} == {("quality", "regressed")}
    assert all(row.headline for row in result.failures)
    assert not any("dense" in row.name for row in result.failures)


def test_a_gain_passes(tmp_path: Path) -> None:
    run(tmp_path / "a", damage=0.4), run(tmp_path / "b")
    result = check(tmp_path / "a", tmp_path / "b")
    assert result.passed and "improved" in verdicts(result, "quality")


def test_holm_spans_the_whole_check(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", damage=0.05)
    result = check(tmp_path / "a", tmp_path / "b")
    families = {row.judgement.family for row in result.rows if row.judgement and row.headline}
    assert families == {"Holm, 8 tests"}


@pytest.mark.parametrize("change", ["sparsity", "counters"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_other_counts_fail(tmp_path: Path, change: str, factor: float) -> None:
    value: Any = 0.3 * factor if change == "sparsity" else {"weights.zeros": 1e5 * factor}
    same: Any = 0.3 if change == "sparsity" else {"weights.zeros": 1e5}
    run(tmp_path / "a", **{change: same}), run(tmp_path / "b", **{change: value})
    result = check(tmp_path / "a", tmp_path / "b")
    assert {row.verdict for row in result.failures} == {"changed"}
    run(tmp_path / "c", **{change: same})
    assert check(tmp_path / "a", tmp_path / "c").passed


def test_texts_of_other_lengths_do_not_fail(tmp_path: Path) -> None:
    said = {"decode.tokens": 900.0, "decode.causal_pairs": 5e4, "prefill.tokens": 1e4, "weights.zeros": 1e5}
    longer = said | {"decode.tokens": 990.0, "decode.causal_pairs": 6e4}
    run(tmp_path / "a", counters=said, flops=5e8), run(tmp_path / "b", counters=longer, flops=6e8)
    result = check(tmp_path / "a", tmp_path / "b")
    assert result.passed and "not compared" in verdicts(result, "exact")
    for what in ("prefill.tokens", "weights.zeros"):  # what does not depend on texts is compared as ever
        run(tmp_path / what, counters=longer | {what: 7.0}, flops=6e8)
        assert {row.verdict for row in check(tmp_path / "a", tmp_path / what).failures} == {"changed"}


def test_an_empty_baseline_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "b")
    (tmp_path / "a" / "cells").mkdir(parents=True)
    with pytest.raises(InputError, match="no cells to compare with"):
        check(tmp_path / "a", tmp_path / "b")


def test_counts_may_differ_by_rounding(tmp_path: Path) -> None:
    run(tmp_path / "a", flops=1e9), run(tmp_path / "b", flops=1e9 * (1 + 1e-12))
    assert check(tmp_path / "a", tmp_path / "b").passed


def test_more_cost_fails_and_less_passes(tmp_path: Path) -> None:
    run(tmp_path / "a", flops=5e8), run(tmp_path / "b", flops=6e8)
    worse, better = check(tmp_path / "a", tmp_path / "b"), check(tmp_path / "b", tmp_path / "a")
    assert {(row.what, row.verdict) for row in worse.failures} == {("flops", "regressed")}
    assert better.passed and "improved" in verdicts(better, "exact")


def test_another_model_is_shown_and_compared(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", fingerprint="0" * 16, sparsity=0.123)
    result = check(tmp_path / "a", tmp_path / "b")
    assert result.passed and any("model fingerprint" in note for note in result.notes)
    assert verdicts(result, "exact") == {"not compared"} and verdicts(result, "quality") == {"same"}


def test_missing_failed_and_new_cells(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    gone, broken = [cell for cell in b.store if cell.spec.stack][:2]
    shutil.rmtree(gone.folder)
    outcome = broken.record.outcome.model_copy(update={"status": "failed", "error": HOSTILE, "metrics": []})
    record = broken.record.model_copy(update={"outcome": outcome, "samples_sha256": None})
    put_again(b.store, broken.spec, record, broken.environment, None)
    result = check(a.store.root, b.store.root)
    assert sorted(row.verdict for row in result.failures) == ["failed", "missing"]
    other_way = check(b.store.root, a.store.root)
    assert other_way.passed and {row.verdict for row in other_way.rows if row.tier == "cells"} == {"new"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_cell_that_failed_in_both_folders_fails(tmp_path: Path, strict: bool) -> None:
    a = run(tmp_path / "a")
    broken = next(cell for cell in a.store if cell.spec.stack)
    outcome = broken.record.outcome.model_copy(update={"status": "failed", "error": "ValueError: boom", "metrics": []})
    record = broken.record.model_copy(update={"outcome": outcome, "samples_sha256": None})
    put_again(a.store, broken.spec, record, broken.environment, None)
    (row,) = check(a.store.root, a.store.root, strict=strict).failures
    assert (row.verdict, row.reason) == ("failed", "in the baseline too: ValueError: boom")


def test_unreadable_cells_fail(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    next(iter(b.store)).folder.joinpath("record.json").write_text("{")
    assert not check(a.store.root, b.store.root).passed


@pytest.mark.parametrize("field", ["data", "definition", "version"])
def test_other_tasks_are_refused(tmp_path: Path, field: str) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    cell = next(c for c in b.store if c.spec.stack)
    task = cell.spec.task.model_copy(update={field: 2 if field == "version" else "other"})
    spec = cell.spec.model_copy(update={"task": task})
    record = cell.record.model_copy(update={"cell": cell_id(spec.plain())})
    b.store.write(spec, record, cell.environment, cell.samples())
    shutil.rmtree(cell.folder)
    result = check(a.store.root, b.store.root)
    (row,) = result.failures
    assert row.verdict == "refused" and f"task {field}".replace("task data", "data") in row.reason


def test_strict_fails_what_is_not_shown(tmp_path: Path) -> None:
    run(tmp_path / "a", samples=40), run(tmp_path / "b", damage=0.1, samples=40)
    lenient, strict = (check(tmp_path / "a", tmp_path / "b", strict=s) for s in (False, True))
    undecided = {row.name for row in lenient.rows if row.verdict == "inconclusive" and row.headline}
    assert undecided and undecided <= {row.name for row in strict.failures}


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    other = Writer(Store.create(tmp_path / "b"))
    other.cell(QA, "pruning")
    with pytest.raises(InputError, match="none of the cells"):
        check(a.store.root, other.store.root)
    with pytest.raises(InputError, match="no results folder"):
        check(a.store.root, tmp_path / "nowhere")


def test_a_check_is_the_same_each_time(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", damage=0.05)
    for format in gate_formats.FORMATS:
        texts = {gate_formats.render(check(tmp_path / "a", tmp_path / "b"), format) for _ in range(2)}
        assert len(texts) == 1


def test_compare_takes_other_models_where_there_is_one_each(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", damage=0.1)
    for cell in list(b.store):
        respecify(b.store, cell, ref="hf:other/model")
    with pytest.raises(InputError, match="none of the cells"):
        check(a.store.root, b.store.root)
    result = compare(a.store.root, b.store.root)
    quality = [row for row in result.rows if row.tier == "quality"]
    assert len(quality) == 12 and all(row.judgement and row.judgement.comparison for row in quality)
    assert any(note.startswith("other model (") for note in result.notes)


def test_compare_leaves_with_1_where_the_second_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (run(tmp_path / name, damage=damage).store.root for name, damage in (("a", 0.0), ("b", 0.4)))
    for one, other, code in ((a, b, 1), (b, a, 0)):
        monkeypatch.setattr("sys.argv", ["sparsebench", "compare", str(one), str(other)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == code and ("FAIL" in capsys.readouterr().out) == bool(code)


def test_compare_names_cells_that_failed(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    cell = list(b.store)[-1]
    outcome = Outcome(status="failed", error="ValueError: boom (mine.py, line 3, in score)")
    shutil.rmtree(cell.folder)
    b.store.write(cell.spec, cell.record.model_copy(update={"outcome": outcome}), cell.environment, None)
    result = compare(a.store.root, b.store.root)
    (row,) = [row for row in result.rows if row.verdict == "not compared"]
    assert "failed in the second: ValueError: boom" in row.reason


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> CheckResult:
    root = tmp_path_factory.mktemp("gate")
    run(root / "a", flops=5e8, config=HOSTILE), run(root / "b", damage=0.4, flops=6e8, config=HOSTILE)
    return check(root / "a", root / "b")


def test_text_puts_failures_first(failing: CheckResult) -> None:
    lines = gate_formats.text(failing).splitlines()
    marks = [line[:4] for line in lines if line.startswith(("FAIL", "ok"))]
    assert marks == sorted(marks) and lines[-1] == f"failed: {len(failing.failures)} of {len(failing.rows)} rows"


def test_json_has_every_row(failing: CheckResult) -> None:
    data = json.loads(gate_formats.to_json(failing), parse_constant=lambda name: pytest.fail(name))
    assert data["passed"] is False and len(data["rows"]) == len(failing.rows)
    row = next(r for r in data["rows"] if r["verdict"] == "regressed" and r["tier"] == "quality")
    assert row["delta_low"] <= row["delta"] <= row["delta_high"] and row["p_adjusted"] <= 0.05


def test_junit_is_valid_and_counts(failing: CheckResult) -> None:
    root = ElementTree.fromstring(gate_formats.junit(failing))
    suite = root.find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", "")) == len(suite.findall("testcase")) == len(failing.rows)
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) == len(failing.failures)
    assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
    assert any("<script>" in (case.get("name") or "") for case in suite.iter("testcase"))


def test_github_annotations_are_one_line_each(failing: CheckResult) -> None:
    lines = gate_formats.github(failing).splitlines()
    assert all(line.startswith("::") for line in lines)
    errors = [line for line in lines if line.startswith("::error title=")]
    assert len(errors) == len(failing.failures) + 1
    for line in lines:
        properties = line[2:].split("::", 1)[0].split(" ", 1)[1]
        assert properties.count("title=") == 1 and "," not in properties and properties.count(":") == 0


def test_markdown_holds_no_markup_of_a_record(failing: CheckResult) -> None:
    text = gate_formats.markdown(failing)
    assert "<script>" not in text.replace("\\<", "") and text.startswith("**failed")


def test_unknown_formats_are_named(failing: CheckResult) -> None:
    with pytest.raises(UnknownNameError, match="yaml"):
        gate_formats.render(failing, "yaml")
