"""Single numbers for many rows: by hand, and against curves whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_results import CHOICE, LEVELS, PPL, QA, SyntheticMethod, Writer, write_suite

from sparsebench.reports.collect import COLUMNS
from sparsebench.reports.quality import calibration_errors, knees, over_tasks, sparsity_at_ratio
from sparsebench.reports.sources import open_sources
from sparsebench.reports.verdicts import judge
from sparsebench.store import Store


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        name: "" if kind == "text" else False if kind == "flag" else math.nan for name, (kind, _) in COLUMNS.items()
    }
    named = {
        "metric": "perplexity",
        "status": "ok",
        "role": "method",
        "method": "wanda",
        "task": "text",
        "headline": True,
    }
    return {**plain, **named, "dense": 10.0, "delta_low": 0.0, "delta_high": 0.0, "seed": 0.0, **changes}


def perplexities(*pairs: tuple[float, float], half: float = 0.0, **changes: Any) -> pd.DataFrame:
    """Rows at (sparsity, ratio to dense), with paired intervals of that half-width in perplexity."""
    rows = []
    for sparsity, ratio in pairs:
        delta = 10 * ratio - 10
        ends = {"delta": delta, "delta_low": delta - half, "delta_high": delta + half}
        rows.append(row(sparsity=sparsity, value=10 * ratio, **ends, **changes))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_sparsity_at_a_ratio_by_hand() -> None:
    # log 1.01 lies half-way between log 1.01^0.5 at 20 % and log 1.01^1.5 at 40 %.
    (found,) = sparsity_at_ratio(perplexities((0.4, 1.01**1.5), (0.2, 1.01**0.5), (0.6, 2.0)))
    assert found.tested == 0.2
    assert found.at == pytest.approx(0.3)
    assert found.low == pytest.approx(found.at) and found.high == pytest.approx(found.at)
    (wider,) = sparsity_at_ratio(perplexities((0.2, 1.01**0.5), (0.4, 1.01**1.5), half=0.03))
    assert wider.low is not None and wider.high is not None and wider.at is not None
    assert wider.low < wider.at < wider.high


@pytest.mark.parametrize(
    ("pairs", "tested", "at"),
    [
        ([(0.1, 1.2), (0.2, 1.3)], None, 0.1 * math.log(1.01) / math.log(1.2)),  # between dense and the first level
        ([(0.1, 1.0), (0.2, 1.005)], 0.2, None),  # it is never reached: no number beyond what was tested
        (
            [(0.1, 1.2), (0.2, 1.0)],
            None,
            0.1 * math.log(1.01) / math.log(1.2),
        ),  # a lucky level above counts for nothing
        ([(0.1, 0.98), (0.2, math.inf)], 0.1, 0.1),  # a collapse: no further than the level before it
    ],
)
def test_sparsity_at_a_ratio_at_its_edges(
    pairs: list[tuple[float, float]], tested: float | None, at: float | None
) -> None:
    (found,) = sparsity_at_ratio(perplexities(*pairs))
    assert found.tested == tested
    assert found.at == (None if at is None else pytest.approx(at))


def test_methods_and_kinds_of_sparsity_are_told_apart() -> None:
    weights = perplexities((0.2, 1.0), (0.4, 1.1), sparsity_of="prunable weights")
    inputs = perplexities((0.2, 1.02), (0.4, 1.1), method="teal", sparsity_of="inputs in scope")
    unexercised = perplexities((0.9, 1.0), method="cats", verdict="not exercised")
    found = sparsity_at_ratio(pd.concat([weights, inputs, unexercised]))
    assert {s.row["method"]: s.tested for s in found} == {"wanda": 0.2, "teal": None}
    looser = sparsity_at_ratio(pd.concat([weights, inputs]), ratio=1.05)
    assert {s.row["method"]: s.tested for s in looser} == {"wanda": 0.2, "teal": 0.2}


def test_the_worst_task_stands_beside_the_mean() -> None:
    tasks = {"a": -0.02, "b": -0.5, "c": 0.1, "d": -0.9}
    rows = [
        row(task=task, metric="accuracy", higher_is_better=True, relative=r, budget="50%", verdict="regressed")
        for task, r in tasks.items()
    ]
    rows[3]["verdict"] = "no signal"
    rows.append(row(task="text", relative=0.3, budget="50%", verdict="regressed"))  # perplexity: more is a loss
    (found,) = over_tasks(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert found.tasks == 4
    assert found.mean == pytest.approx((0.02 + 0.5 - 0.1 + 0.3) / 4)
    assert (found.worst, found.worst_task, found.worst_metric) == (0.5, "b", "accuracy")


def test_real_tables_give_numbers(table: pd.DataFrame) -> None:
    at = sparsity_at_ratio(table)
    assert at and all(s.row["metric"] == "perplexity" for s in at)
    spread = over_tasks(table)
    assert spread and all(s.worst >= s.mean for s in spread)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    store = Store.create(tmp_path / "run")
    write_suite(store)
    return Writer(store, samples=150)


def test_a_knee_is_found_where_it_was_put(writer: Writer) -> None:
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    method = SyntheticMethod("wanda", "pruning", tuple({"sparsity": s} for s in levels), 0.5)
    generator = np.random.default_rng(0)
    base = generator.normal(3.0, 0.3, writer.samples)
    names = [f"w{i:03d}" for i in range(writer.samples)]

    def frame(sparsity: float) -> pd.DataFrame:
        rise = 0.1 * sparsity + 6 * max(0.0, sparsity - 0.45)
        nll = base + rise + generator.normal(0, 0.01, len(base))
        return pd.DataFrame({"sample": names, "cluster": names, "nll": nll * 100, "nll.weight": 100.0})

    dense = writer.cell(PPL, "pruning", frame=frame(0.0))
    for k, sparsity in enumerate(levels):
        changes = {"baseline": dense.id, "role": "method", "sparsity": sparsity}
        writer.cell(PPL, "pruning", method=method, budget=k, frame=frame(sparsity), **changes)
    (knee,) = knees(judge(open_sources([writer.store.root])), resamples=200)
    assert (knee.label, knee.task, knee.metric) == ("wanda", PPL.id, "perplexity")
    assert knee.found.at == pytest.approx(0.45, abs=0.02)
    assert knee.found.low - 0.01 <= knee.found.at <= knee.found.high + 0.01  # its ends lie on a grid of 401 places
    assert knee.found.slope_after > 10 * knee.found.slope_before > 0
    assert knee.found.advantage > 0


def test_few_levels_have_no_knee(results: Path) -> None:
    assert len(LEVELS) < 6
    assert knees(judge(open_sources([results])), resamples=20) == []


def test_calibration_errors_of_cells_that_say_how_sure_they_were(writer: Writer) -> None:
    generator = np.random.default_rng(2)
    sure = generator.uniform(0.25, 1, 400)
    frame = pd.DataFrame(
        {
            "sample": [f"q{i}" for i in range(400)],
            "cluster": [f"q{i}" for i in range(400)],
            "correct": (generator.random(400) < 0.5 * sure).astype(float),
            "gold_logprob": -1.0,
            "confidence": sure,
        }
    )
    writer.cell(CHOICE, "pruning", frame=frame)
    writer.cell(QA, "pruning")
    (found,) = calibration_errors(judge(open_sources([writer.store.root])), resamples=50)
    assert found.item.cell.spec.task.id == CHOICE.id
    assert found.error.gap == pytest.approx(float((sure - frame["correct"]).mean()))
    assert found.error.error > 0.2
