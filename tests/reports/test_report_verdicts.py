import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_results import (
    CHOICE,
    GUESS,
    LEVELS,
    NEEDLE,
    PPL,
    QA,
    SyntheticMethod,
    SyntheticTask,
    Writer,
    put_again,
    write_suite,
)

from sparsebench.metrics import Metric
from sparsebench.records import MetricValue
from sparsebench.reports import tables
from sparsebench.reports.collect import collect
from sparsebench.reports.realised_budget import not_met
from sparsebench.reports.safe import safe_sparsities
from sparsebench.stats import Margin, benjamini_hochberg, compare, holm
from sparsebench.store import Store, StoredCell

METHOD = SyntheticMethod("method", "pruning", LEVELS, 0.5)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    store = Store.create(tmp_path / "run")
    write_suite(store)
    return Writer(store, samples=300)


def put(
    writer: Writer, cell: StoredCell, frame: pd.DataFrame, metrics: list[Metric] | None = None, **outcome: Any
) -> None:
    """Replace a cell's samples, with the metrics that they give."""
    shown = metrics or [m.metric for m in cell.record.outcome.metrics]
    values = [MetricValue(metric=m, value=_finite(m.value(frame)), n=int(frame[m.column].notna().sum())) for m in shown]
    new = cell.record.outcome.model_copy(update={"metrics": values, **outcome})
    put_again(writer.store, cell.spec, cell.record.model_copy(update={"outcome": new}), cell.environment, frame)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def rows_of(writer: Writer, cell: StoredCell) -> pd.DataFrame:
    table = collect(writer.store.root)
    return table[table["cell"] == cell.id].set_index("metric")


def verdict(writer: Writer, cell: StoredCell, metric: str) -> str:
    return str(rows_of(writer, cell).loc[metric, "verdict"])


def test_a_row_whose_baseline_has_another_dtype_says_so(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    noise = writer.cell(CHOICE, "pruning", baseline=base.id, role="noise", replica="bfloat16")
    half = replace(METHOD, system=writer.system.model_copy(update={"dtype": "bfloat16"}))
    same = writer.cell(CHOICE, "pruning", method=METHOD, baseline=base.id, role="method")
    other = writer.cell(CHOICE, "pruning", method=half, baseline=base.id, role="method")
    told = {
        cell.id: set(rows_of(writer, cell)["reason"].str.contains("its baseline ran in float32"))
        for cell in (base, noise, same, other)
    }
    assert told == {base.id: {False}, noise.id: {False}, same.id: {False}, other.id: {True}}


def pair(writer: Writer, task: SyntheticTask, damage: float, **changes: Any) -> tuple[StoredCell, StoredCell]:
    base = writer.cell(task, "pruning")
    sparse = writer.cell(
        task, "pruning", method=METHOD, budget=3, baseline=base.id, role="method", damage=damage, **changes
    )
    return base, sparse


def test_the_comparison_is_that_of_the_statistics(writer: Writer) -> None:
    base, sparse = pair(writer, CHOICE, 0.4)
    a, b = base.samples(), sparse.samples()
    assert a is not None and b is not None
    expected = compare(a["correct"], b["correct"], kind="binary", margin=Margin(0.05, "relative"))
    row = rows_of(writer, sparse).loc["accuracy"]
    for name in ("dense", "delta", "delta_low", "delta_high", "p", "mde", "margin", "n"):
        assert row[name] == pytest.approx(getattr(expected, name)), name
    assert (row["flips_lost"], row["flips_gained"]) == (expected.lost, expected.gained)
    assert row["verdict"] == expected.verdict


def test_the_order_of_the_samples_has_no_part_in_it(writer: Writer) -> None:
    _, sparse = pair(writer, PPL, 0.2)
    before = rows_of(writer, sparse)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(before, rows_of(writer, sparse), rtol=1e-9)


def test_other_samples_are_refused(writer: Writer) -> None:
    _, sparse = pair(writer, CHOICE, 0.0)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame.iloc[:-1])
    row = rows_of(writer, sparse).loc["accuracy"]
    assert row["verdict"] == "inconclusive" and "other samples" in row["reason"] and math.isnan(row["delta"])
    assert row["n"] == 299, "its own value is still shown"


def test_samples_that_come_twice_are_refused(writer: Writer) -> None:
    _, sparse = pair(writer, CHOICE, 0.0)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, pd.concat([frame.iloc[:-1], frame.iloc[:1]]))
    assert "twice" in rows_of(writer, sparse).loc["accuracy", "reason"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "task version"),
        ({"data": "other"}, "data"),
        ({"definition": "x"}, "definition"),
        ({"limit": 7}, "limit"),
    ],
)
def test_other_tasks_and_data_are_refused(writer: Writer, change: dict[str, Any], named: str) -> None:
    class Changed(SyntheticTask):
        @property
        def spec(self):  # type: ignore[no-untyped-def]
            return super().spec.model_copy(update=change)

    base = writer.cell(CHOICE, "pruning")
    other = Changed(CHOICE.id, CHOICE.metrics, CHOICE.kind, CHOICE.level)
    sparse = writer.cell(other, "pruning", method=METHOD, baseline=base.id, role="method", damage=0.9)
    row = rows_of(writer, sparse).loc["accuracy"]
    assert row["verdict"] == "inconclusive" and named in row["reason"] and math.isnan(row["delta"])


def test_another_version_of_a_metric_is_refused(writer: Writer) -> None:
    _, sparse = pair(writer, CHOICE, 0.9)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame, [m.model_copy(update={"version": 2}) for m in CHOICE.metrics])
    row = rows_of(writer, sparse).loc["accuracy"]
    assert row["verdict"] == "inconclusive" and "metric version (2 against 1)" in row["reason"]


def test_baseline_and_noise_rows(writer: Writer) -> None:
    base, sparse = pair(writer, CHOICE, 0.0)
    noise = writer.cell(CHOICE, "pruning", baseline=base.id, role="noise", replica="bfloat16", damage=0.3)
    assert verdict(writer, base, "accuracy") == "baseline"
    row = rows_of(writer, noise).loc["accuracy"]
    assert row["verdict"] == "noise" and row["delta"] != 0
    assert rows_of(writer, sparse).loc["accuracy", "noise"] == abs(row["delta"])


def test_no_margin_is_below_twice_the_noise(writer: Writer) -> None:
    base, sparse = pair(writer, PPL, 0.0)
    assert verdict(writer, sparse, "perplexity") == "non-inferior"
    writer.cell(PPL, "pruning", baseline=base.id, role="noise", replica="bfloat16", damage=0.25)
    row = rows_of(writer, sparse).loc["perplexity"]
    assert row["margin"] < 2 * row["noise"]
    assert row["verdict"] == "inconclusive" and "noise" in row["reason"]


def test_a_baseline_at_chance_gives_no_verdict(writer: Writer) -> None:
    _, sparse = pair(writer, GUESS, 0.9)
    assert verdict(writer, sparse, "accuracy") == "no signal"


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({"exercised": False}, "not exercised", "acted on nothing"),
        ({"phase": "decode", "decode_queries": 15.9}, "not exercised", "15.9 decode queries"),
        ({"phase": "decode", "decode_queries": 16.0}, "inconclusive", "fewer than 64 decode queries a sample"),
        ({"phase": "decode", "decode_queries": 63.0}, "inconclusive", "fewer than 64 decode queries a sample"),
        ({"phase": "decode", "decode_queries": None}, "inconclusive", "not counted"),
        ({"phase": "decode", "decode_queries": 64.0}, "regressed", "loss"),
        ({"phase": "prefill+decode", "decode_queries": 3.0}, "regressed", "loss"),
    ],
)
def test_methods_that_acted_on_too_little_get_no_verdict(
    writer: Writer, change: dict[str, Any], expected: str, reason: str
) -> None:
    _, sparse = pair(writer, NEEDLE, 0.9, **change)
    row = rows_of(writer, sparse).loc["recall"]
    assert row["verdict"] == expected and reason in row["reason"]
    assert row["delta"] < 0, "the numbers are shown all the same"


def test_values_that_are_not_finite_are_a_regression_and_not_a_crash(writer: Writer) -> None:
    _, sparse = pair(writer, PPL, 0.0)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame.assign(nll=np.where(np.arange(len(frame)) == 3, np.inf, frame["nll"])))
    row = rows_of(writer, sparse).loc["perplexity"]
    assert row["value"] > 1e300 and row["verdict"] == "regressed"


def test_samples_without_a_value_are_not_dropped_silently(writer: Writer) -> None:
    _, sparse = pair(writer, PPL, 0.0)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame.assign(nll=np.where(np.arange(len(frame)) < 30, np.nan, frame["nll"])))
    row = rows_of(writer, sparse).loc["perplexity"]
    assert row["verdict"] == "inconclusive" and "one system only" in row["reason"]


def test_a_binary_metric_with_other_values_is_not_tested(writer: Writer) -> None:
    _, sparse = pair(writer, CHOICE, 0.0)
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame.assign(correct=frame["correct"] * 0.5))
    row = rows_of(writer, sparse).loc["accuracy"]
    assert row["verdict"] == "inconclusive" and "other than 0 and 1" in row["reason"]


def test_holm_inside_the_gate_and_benjamini_hochberg_elsewhere(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    for k in range(6):
        method = SyntheticMethod(f"method-{k}", "pruning", LEVELS, 0.5, role="control" if k == 5 else "method")
        writer.cell(CHOICE, "pruning", method=method, budget=2, baseline=base.id, role="method", damage=0.05 + 0.12 * k)
    table = collect(writer.store.root)
    tested = table[table["baseline"] == base.id]
    gate = tested[tested["headline"] & (tested["role"] == "method")]
    rest = tested.drop(gate.index)
    assert set(gate["family_of_tests"]) == {"Holm, 5 tests"}
    assert set(rest["family_of_tests"]) == {"Benjamini-Hochberg, 7 tests"}
    frames = {cell.id: cell.samples() for cell in writer.store}
    for rows, adjust in ((gate, holm), (rest, benjamini_hochberg)):
        found = []
        for row in rows.to_dict("records"):
            metric = next(m for m in CHOICE.metrics if m.name == row["metric"])
            a, b = frames[base.id][metric.column], frames[row["cell"]][metric.column]
            from sparsebench.identity import seed_of

            seed = seed_of("bootstrap", base.id, metric.name)
            found.append(compare(a, b, kind=metric.kind, margin=Margin(0.05, "relative"), seed=seed, resamples=1000))
        worse = adjust([c.p_regression for c in found])
        better = adjust([c.p_improvement for c in found])
        expected = np.minimum(1, 2 * np.minimum(worse, better))
        np.testing.assert_allclose(rows["p_adjusted"], expected, rtol=1e-6)
        for row, w in zip(rows.to_dict("records"), worse, strict=True):
            if row["verdict"] == "regressed":
                assert w <= 0.05


def test_a_verdict_that_only_correction_undoes_says_so(table: pd.DataFrame) -> None:
    undone = table[table["reason"].str.contains("by itself, but not after correction")]
    assert len(undone)
    assert set(undone["verdict"]) <= {"inconclusive", "non-inferior", "regressed"}


def test_false_alarms_of_a_gate_stay_at_alpha(writer: Writer) -> None:
    """Thirty gates of six methods that change answers at random: at alpha .05, six alarms have a chance of .003."""
    writer.samples = 120
    rng = np.random.default_rng(0)
    for trial in range(30):
        task = replace(CHOICE, id=f"choice-{trial}", metrics=CHOICE.metrics[:1])
        base = writer.cell(task, f"grid-{trial}")
        frame = base.samples()
        assert frame is not None
        for k in range(6):
            method = SyntheticMethod(f"method-{k}", "pruning", LEVELS, 0.0)
            again = (rng.random(len(frame)) < frame["correct"].mean()).astype(float)
            answers = np.where(rng.random(len(frame)) < 0.15, again, frame["correct"])
            writer.cell(
                task,
                f"grid-{trial}",
                method=method,
                baseline=base.id,
                role="method",
                frame=frame.assign(correct=answers),
            )
    found = collect(writer.store.root)
    alarms = found[found["verdict"].isin(["regressed", "improved"])]["grid"].nunique()
    assert alarms <= 5


def test_margins_are_those_that_the_suite_declares(writer: Writer) -> None:
    _, sparse = pair(writer, CHOICE, 0.1)
    write_suite(writer.store, margins={"*": {"*": {"relative": 0.1}}, CHOICE.id: {"accuracy": {"points": 0.03}}})
    rows = rows_of(writer, sparse)
    assert rows.loc["accuracy", "margin"] == 0.03
    assert rows.loc["gold_logprob", "margin"] == pytest.approx(0.1 * abs(rows.loc["gold_logprob", "dense"]))


def test_the_largest_safe_sparsity_stops_at_the_first_failure(writer: Writer) -> None:
    base = writer.cell(PPL, "pruning")
    for k, damage in enumerate((0.0, 0.05, 0.6, 0.0, 0.6)):
        writer.cell(PPL, "pruning", method=METHOD, budget=k, baseline=base.id, role="method", damage=damage)
    (safe,) = safe_sparsities(collect(writer.store.root))
    assert (safe.largest, safe.first_failure, safe.levels, safe.obstacle) == (0.2, 0.3, 5, "")


def test_bits_are_no_levels_of_sparsity(table: pd.DataFrame) -> None:
    everything = safe_sparsities(table)
    one = everything[0].row
    mine = (table["method"] == one["method"]) & (table["task"] == one["task"])
    found = safe_sparsities(table.assign(budget=table["budget"].where(~mine, "4 bits")))
    assert len(found) < len(everything)
    assert not [s for s in found if (s.row["method"], s.row["task"]) == (one["method"], one["task"])]


def test_safe_sparsities_of_tasks_without_signal_say_so(table: pd.DataFrame) -> None:
    found = {(s.row["method"], s.row["task"]): s for s in safe_sparsities(table)}
    assert found["wanda", GUESS.id].obstacle == "no signal" and found["wanda", GUESS.id].largest is None
    assert found["h2o", NEEDLE.id].obstacle == "not exercised"
    assert not any(method == "random-weights" for method, _ in found)
    assert found["quest", PPL.id].largest == pytest.approx(0.9375)


def test_what_verdicts_show_is_safe_by_itself_too(table: pd.DataFrame) -> None:
    found = [s for s in safe_sparsities(table) if s.corrected is not None]
    assert found and all(s.largest is not None and s.corrected <= s.largest for s in found)
    for s in found:
        rows = table[table["headline"] & (table["sparsity"].round(4) == s.corrected)]
        for key in ("source", "grid", "model", "method", "config", "task", "metric"):
            rows = rows[rows[key] == s.row[key]]
        assert len(rows) and set(rows["verdict"]) <= {"non-inferior", "improved"}


def test_one_family_of_tests_whatever_the_shards(tmp_path: Path, writer: Writer) -> None:
    base = writer.cell(QA, "pruning")
    whole = [
        writer.cell(
            QA,
            "pruning",
            method=SyntheticMethod(f"m-{k}", "pruning", LEVELS, 0),
            baseline=base.id,
            role="method",
            damage=0.2,
        )
        for k in range(4)
    ]
    together = collect(writer.store.root)
    shards = [Store.create(tmp_path / f"shard-{k}") for k in range(2)]
    for store in shards:
        write_suite(store)
    import shutil

    for k, cell in enumerate([base, *whole]):
        shutil.copytree(cell.folder, shards[k % 2].cells_folder / cell.id)
    apart = collect(*(store.root for store in shards))
    columns = ["cell", "metric", "delta", "p_adjusted", "verdict", "family_of_tests", "reason"]
    order = ["cell", "metric"]
    a, b = (t[columns].sort_values(order).reset_index(drop=True) for t in (together, apart))
    pd.testing.assert_frame_equal(a, b)


def test_rows_on_another_system_are_in_the_gate_of_their_baseline(writer: Writer) -> None:
    base = writer.cell(CHOICE, "pruning")
    other = METHOD.system.model_copy(update={"ref": "hf:another/model"})
    for k, system in enumerate((METHOD.system, other)):
        method = SyntheticMethod(f"method-{k}", "pruning", LEVELS, 0.5, system=system)
        writer.cell(CHOICE, "pruning", method=method, baseline=base.id, role="method", damage=0.2)
    table = collect(writer.store.root)
    tested = table[(table["role"] == "method") & table["headline"]]
    assert set(tested["family_of_tests"]) == {"Holm, 2 tests"}


def sweep(writer: Writer, damages: dict[str, list[float]], task: SyntheticTask = PPL) -> pd.DataFrame:
    """Methods at five levels each, with their own damage at each; the headline rows by label."""
    base = writer.cell(task, "pruning")
    frame = base.samples()
    assert frame is not None
    for k, (name, each) in enumerate(damages.items()):
        method = SyntheticMethod(name, "pruning", LEVELS, 0.0)
        for budget, damage in enumerate(each):
            noise = np.random.default_rng([k, budget]).normal(damage, 0.3, len(frame))
            changed = frame.assign(nll=frame["nll"] + noise * frame["nll.weight"])
            writer.cell(task, "pruning", method=method, budget=budget, baseline=base.id, role="method", frame=changed)
    table = collect(writer.store.root)
    return table[table["headline"] & (table["role"] == "method")].set_index("label")


def test_hopeless_levels_do_not_make_a_good_one_harder_to_confirm(writer: Writer) -> None:
    rows = sweep(writer, {"one": [0.0, 2.0, 2.0, 2.0, 2.0], "two": [2.0] * 5})
    p = rows.loc["one 10%", "p_noninferior"]
    assert p <= rows.loc["one 10%", "p_kept"] <= 2 * p + 1e-12, "two sequences share alpha, ten rows do not"


def test_a_level_above_a_failure_is_not_shown(writer: Writer) -> None:
    rows = sweep(writer, {"one": [0.0, 2.0, 0.0, 2.0, 2.0]})
    assert list(rows["verdict"])[:3] == ["non-inferior", "regressed", "inconclusive"]
    reason = rows.loc["one 30%", "reason"]
    assert "non-inferior by itself" in reason and "a less sparse level is not shown" in reason


def test_seeds_of_a_level_count_as_the_worst_of_them(writer: Writer) -> None:
    base = writer.cell(PPL, "pruning")
    frame = base.samples()
    assert frame is not None
    for seed, damage in ((0, 0.0), (1, 2.0)):
        noise = np.random.default_rng(seed).normal(damage, 0.3, len(frame))
        changed = frame.assign(nll=frame["nll"] + noise * frame["nll.weight"])
        writer.cell(PPL, "pruning", method=METHOD, baseline=base.id, role="method", frame=changed, seed=seed)
    table = collect(writer.store.root)
    kept = table.loc[table["headline"] & (table["role"] == "method"), "p_kept"]
    assert kept.nunique() == 1 and kept.iloc[0] > 0.05


@pytest.mark.parametrize(
    ("realised", "said"), [(0.0, True), (0.44, True), (0.46, False), (0.5, False), (0.6, False), (None, False)]
)
def test_a_budget_that_was_not_met_is_remarked_and_changes_no_verdict(
    writer: Writer, realised: float | None, said: bool
) -> None:
    _, sparse = pair(writer, CHOICE, 0.0)  # at a half
    before = rows_of(writer, sparse).loc["accuracy"]
    frame = sparse.samples()
    assert frame is not None
    put(writer, sparse, frame, sparsity=realised, sparsity_of="prunable weights")
    row = rows_of(writer, sparse).loc["accuracy"]
    assert row["verdict"] == before["verdict"]
    remark = f"the budget was not met: {100 * (realised or 0):.1f}% of prunable weights, 50.0% asked"
    assert row["reason"].endswith(remark) is said
    assert ("not met" in row["reason"]) is said
    assert ("method 50%: the budget was not met" in tables.markdown(collect(writer.store.root))) is said


@pytest.mark.parametrize(
    ("budgets", "realised", "said"),
    [
        ([{"sparsity": 0.9}], 0.82, False),  # 8 points, and less than a tenth
        ([{"sparsity": 0.9}], 0.8, True),
        ([{"sparsity": 0.1}], 0.06, False),  # four tenths, and less than 5 points
        ([{"pattern": "2:4"}], 0.2, True),
        ([{"tokens": 64}], 0.0, False),
        ([None], 0.0, False),
        ([], 0.0, False),
        ([{"sparsity": 0.5}, {"sparsity": 0.5}], 0.0, False),
    ],
)
def test_only_a_single_share_can_be_missed(
    writer: Writer, budgets: list[dict[str, Any] | None], realised: float, said: bool
) -> None:
    _, sparse = pair(writer, CHOICE, 0.0)
    stack = [sparse.spec.stack[0].model_copy(update={"budget": budget}) for budget in budgets]
    outcome = sparse.record.outcome.model_copy(update={"sparsity": realised})
    spec, record = (
        sparse.spec.model_copy(update={"stack": stack}),
        sparse.record.model_copy(update={"outcome": outcome}),
    )
    assert bool(not_met(spec, record)) is said
