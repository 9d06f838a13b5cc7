import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import (
    CHOICE,
    HOSTILE,
    LEVELS,
    NEEDLE,
    PPL,
    QA,
    SyntheticMethod,
    Writer,
    put_again,
    samples_of,
    write_suite,
)

from sparsebench.errors import InputError, IntegrityError
from sparsebench.metrics import Metric
from sparsebench.reports.collect import COLUMNS, collect
from sparsebench.reports.comparisons import value_of
from sparsebench.reports.notation import VERDICTS
from sparsebench.store import Store

FIXED = (
    "suite, cell, family, method, config, model, task, phase, budget, sparsity, "
    "flops_ratio, bytes_ratio, mode, metric, value, ci_low, ci_high, n, "
    "dense, delta, delta_low, delta_high, verdict, seconds, peak_memory, energy, hardware, source"
).split(", ")

WANDA = SyntheticMethod("wanda", "pruning", LEVELS, 0.5)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    store = Store.create(tmp_path / "run")
    write_suite(store)
    return Writer(store, samples=200)


def test_columns_of_the_contract_come_first_and_every_row_is_unique(table: pd.DataFrame) -> None:
    assert list(table.columns)[: len(FIXED)] == FIXED
    assert list(table.columns) == list(COLUMNS)
    assert not table.duplicated(["source", "cell", "phase", "metric"]).any()
    assert set(table["verdict"]) <= set(VERDICTS)


def test_values_and_differences_are_those_of_the_samples(results: Path, table: pd.DataFrame) -> None:
    store = Store.open(results)
    for row in table[table["metric"] != ""].to_dict("records"):
        stored = store.read(row["cell"])
        metric = next(m.metric for m in stored.record.outcome.metrics if m.metric.name == row["metric"])
        samples = stored.samples()
        assert samples is not None
        assert row["value"] == pytest.approx(metric.value(samples), rel=1e-12)
        assert row["n"] == samples[metric.column].notna().sum()
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        if row["role"] != "baseline":
            base = store.read(row["baseline"]).samples()
            assert base is not None
            assert row["dense"] == pytest.approx(metric.value(base), rel=1e-12)
            assert row["delta"] == pytest.approx(row["value"] - row["dense"], abs=1e-12)
            assert row["delta_low"] <= row["delta"] <= row["delta_high"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("transform", ["identity", "exp"])
def test_fast_value_is_the_metrics_own(weighted: bool, transform: str) -> None:
    metric = Metric(name="m", column="x", transform=transform)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for x in (
        rng.normal(size=50),
        np.where(rng.random(50) < 0.3, np.nan, 1.0),
        np.full(3, np.nan),
        np.full(4, 1e4),
        np.full(2, np.inf),
    ):
        weight = rng.random(len(x)) + 0.1 if weighted else None
        frame = pd.DataFrame({"x": x, **({"x.weight": weight} if weight is not None else {})})
        ours, theirs = value_of(metric, x, weight), metric.value(frame)
        assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-13))


def test_names(table: pd.DataFrame) -> None:
    lm = table[table["task"] == QA.id]
    assert set(lm.loc[lm["role"] == "baseline", "method"]) == {"dense"}
    assert set(table.loc[(table["task"] == "toy-search") & (table["role"] == "baseline"), "method"]) == {"full vectors"}
    assert {"10%", "2:4", "128 tokens", "8 terms"} <= set(table["budget"])


def test_stacks_are_printed_with_plus(writer: Writer) -> None:
    base = writer.cell(QA, "pruning")
    one = writer.cell(QA, "pruning", method=WANDA, budget=2, baseline=base.id, role="method")
    spec = one.spec.model_copy(
        update={"stack": [*one.spec.stack, one.spec.stack[0].model_copy(update={"method": "quest"})]}
    )
    from sparsebench.identity import cell_id

    identity = cell_id(spec.plain())
    record = one.record.model_copy(update={"cell": identity})
    writer.store.write(spec, record, one.environment, one.samples())
    table = collect(writer.store.root)
    stacked = table[table["cell"] == identity]
    assert set(stacked["method"]) == {"wanda+quest"}
    assert set(stacked["budget"]) == {"30%+30%"}


def test_seconds_are_a_speed_of_executed_cells_only(table: pd.DataFrame) -> None:
    executed = table["mode"] == "executed"
    assert executed.any()
    assert table.loc[executed, "seconds"].notna().all()
    assert table.loc[~executed, ["seconds", "energy"]].isna().all().all()
    assert table["evaluation_seconds"].notna().all()


def test_a_failed_cell_is_a_row_with_its_reason(table: pd.DataFrame) -> None:
    failed = table[table["status"] == "failed"]
    assert list(failed["method"]) == ["griffin"]
    assert failed["metric"].tolist() == [""] and failed["verdict"].tolist() == ["failed"]
    assert "out of memory" in failed["reason"].iloc[0]


def test_texts_are_free_of_control_and_direction_characters(table: pd.DataFrame) -> None:
    assert any("<script>" in config for config in table["config"]), "names are kept, not dropped"
    for name, (kind, _) in COLUMNS.items():
        if kind == "text":
            assert all(text.isprintable() for text in table[name]), name
    assert not HOSTILE.isprintable()


def test_an_edited_cell_is_shown_as_failed_and_gives_no_number(writer: Writer) -> None:
    base = writer.cell(QA, "pruning")
    cells = [writer.cell(QA, "pruning", method=WANDA, budget=k, baseline=base.id, role="method") for k in range(3)]
    record = cells[0].folder / "record.json"
    record.write_text(record.read_text().replace('"value": 0.', '"value": 0.9'))
    (cells[1].folder / "samples.parquet").write_bytes(b"PAR1")
    (cells[2].folder / "spec.json").write_text("{")
    table = collect(writer.store.root).set_index("cell")
    for cell, reason in zip(cells, ("its samples give", "sha256", "not JSON"), strict=True):
        assert table.loc[cell.id, "status"] == "failed"
        assert math.isnan(table.loc[cell.id, "value"])
        assert reason in table.loc[cell.id, "reason"]


def test_columns_that_hold_no_numbers_are_an_error_of_the_cell(writer: Writer) -> None:
    base = writer.cell(QA, "pruning")
    one = writer.cell(QA, "pruning", method=WANDA, baseline=base.id, role="method")
    frame = one.samples()
    assert frame is not None
    put_again(writer.store, one.spec, one.record, one.environment, frame.assign(correct="yes"))
    row = collect(writer.store.root).set_index("cell").loc[one.id]
    assert row["status"] == "failed" and "no numbers" in row["reason"]


def test_sources_are_told_apart_and_the_same_folder_counts_once(results: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / results.name
    shutil.copytree(results, other)
    once = collect(results, results)
    twice = collect(results, other)
    assert len(twice) == 2 * len(once)
    assert twice["source"].nunique() == 2
    assert not twice.duplicated(["source", "cell", "phase", "metric"]).any()
    assert not any(source.startswith("/") for source in twice["source"])


def test_a_baseline_is_found_in_another_source(tmp_path: Path) -> None:
    one, two = (Writer(Store.create(tmp_path / name), samples=60) for name in ("shard-0", "shard-1"))
    base = one.cell(PPL, "pruning")
    cell = two.cell(PPL, "pruning", method=WANDA, budget=4, baseline=base.id, role="method", damage=0.5)
    row = collect(one.store.root, two.store.root).set_index("cell").loc[cell.id]
    assert row["verdict"] == "regressed" and row["dense"] == pytest.approx(base.record.outcome.metrics[0].value)
    alone = collect(two.store.root).set_index("cell").loc[cell.id]
    assert alone["verdict"] == "inconclusive" and "not among the results" in alone["reason"]
    assert math.isnan(alone["delta"]) and alone["value"] == row["value"]


def test_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results folder"):
        collect(tmp_path)
    with pytest.raises(InputError, match="was named"):
        collect()
    (tmp_path / "cells").mkdir()
    empty = collect(tmp_path)
    assert empty.empty and list(empty.columns) == list(COLUMNS)


def test_wrong_rules_of_a_suite_are_named(writer: Writer) -> None:
    writer.cell(QA, "pruning")
    writer.store.write_suite({"suite": {"conclude": {"alpha": 2}}, "lock": {}})
    with pytest.raises(IntegrityError, match=r"conclude\.alpha"):
        collect(writer.store.root)


def test_the_table_is_the_same_each_time_and_whatever_stands_beside_it(writer: Writer, tmp_path: Path) -> None:
    base = writer.cell(NEEDLE, "attention")
    for k in range(3):
        method = SyntheticMethod(f"m{k}", "attention", LEVELS, 0.4)
        writer.cell(NEEDLE, "attention", method=method, budget=3, baseline=base.id, role="control", damage=0.1 * k)
    first, second = collect(writer.store.root), collect(writer.store.root)
    pd.testing.assert_frame_equal(first, second)
    few = Writer(Store.create(tmp_path / "few" / "run"), samples=200)
    write_suite(few.store)
    for identity in [base.id, first.loc[first["method"] == "m2", "cell"].iloc[0]]:
        shutil.copytree(writer.store.cells_folder / identity, few.store.cells_folder / identity)
    alone = collect(few.store.root)
    columns = ["value", "ci_low", "ci_high", "delta", "delta_low", "delta_high", "p", "mde"]
    a = first[first["method"] == "m2"][columns].reset_index(drop=True)
    b = alone[alone["method"] == "m2"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(a, b)


def test_samples_of_the_generator_share_what_is_not_damaged() -> None:
    clean, hurt = samples_of(CHOICE, 0.0, 1, 300), samples_of(CHOICE, 0.3, 2, 300)
    assert 0 < (clean["correct"] != hurt["correct"]).mean() < 0.3


def test_storage_and_preparation_of_a_cell_are_columns(writer: Writer) -> None:
    dense = writer.cell(PPL, "pruning")
    known = {"bits_per_weight": 9.0, "prepare_seconds": 3.5, "prepare_tokens": 65536, "prepare_memory": 2**30}
    writer.cell(PPL, "pruning", method=WANDA, baseline=dense.id, role="method", bytes_per_token=1e6, **known)
    table = collect(writer.store.root).set_index("method")
    for name, value in {**known, "bytes_per_token": 1e6}.items():
        assert table.loc["wanda", name] == value
    assert table.loc["dense", ["bits_per_weight", "prepare_memory"]].isna().all()
