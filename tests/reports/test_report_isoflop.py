"""Quality at equal cost: the frontier by hand, the table at levels, figures, and the bound of Amdahl's law."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from sparsebench.errors import InputError
from sparsebench.reports import isoflop
from sparsebench.reports.figures import styles
from sparsebench.reports.tradeoffs import Tradeoff, tradeoffs
from sparsebench.timeshares import amdahl


def row(method, cost, value, role="method", **more):
    return {"method": method, "config": "", "role": role, "flops_ratio": cost, "value": value, "family": "", **more}


def tradeoff(*rows, higher=True, dense=0.8):
    return Tradeoff("m", "t", "accuracy", rows, dense, 0.05, higher, "t-accuracy-m")


def test_the_frontier_by_hand():
    rows = [
        row("a", 0.9, 0.80), row("b", 0.7, 0.75), row("a", 0.7, 0.70), row("b", 0.5, 0.50), row("c", 0.6, 0.50),
        row("oracle", 0.5, 0.79, role="bound"), row("d", 1.2, 0.9), row("e", math.nan, 0.9),
    ]  # fmt: skip
    front = isoflop.pareto(tradeoff(*rows), "flops_ratio")
    assert [(r["method"], r["flops_ratio"]) for r in front] == [("b", 0.5), ("b", 0.7), ("a", 0.9)]
    losses = [row("a", 0.9, 20.0), row("b", 0.7, 19.0), row("c", 0.5, 30.0)]
    front = isoflop.pareto(tradeoff(*losses, higher=False, dense=18.0), "flops_ratio")
    assert [r["method"] for r in front] == ["c", "b"]


def test_nothing_beats_the_frontier(table: pd.DataFrame) -> None:
    for found in tradeoffs(table):
        sign = 1 if found.higher_is_better else -1
        front = isoflop.pareto(found, "flops_ratio")
        for kept in front:
            for other in isoflop.costed(found, "flops_ratio"):
                if other["role"] != "bound" and other["flops_ratio"] <= kept["flops_ratio"]:
                    assert sign * other["value"] <= sign * kept["value"] or other["flops_ratio"] == kept["flops_ratio"]
        costs = [r["flops_ratio"] for r in front]
        assert costs == sorted(costs)


def test_curves_take_the_mean_of_seeds():
    (curve,) = isoflop.curves(tradeoff(row("a", 0.9, 0.6), row("a", 0.9, 0.8), row("a", 0.5, 0.2)), "flops_ratio")
    assert curve.points == ((0.9, pytest.approx(0.7)), (0.5, 0.2))


def test_levels_that_a_method_has_not_are_empty(table: pd.DataFrame) -> None:
    found = isoflop.iso_table(table, [0.9, 0.0])
    assert list(found.columns) == ["task", "model", "metric", "method", "config", "dense", "0.9", "0"]
    assert len(found) > 0
    assert found["0"].isna().all()
    for _, each in found.iterrows():
        assert not each["method"].startswith("dense")


def test_stacks_have_a_cost_and_no_sparsity_and_are_there(table: pd.DataFrame) -> None:
    several = table.assign(sparsity=math.nan)
    assert not tradeoffs(several)
    pd.testing.assert_frame_equal(isoflop.iso_table(several, [0.9]), isoflop.iso_table(table, [0.9]))


def test_figures_are_the_same_bytes_each_time(table: pd.DataFrame, tmp_path: Path) -> None:
    first = isoflop.write_isoflop(table, tmp_path / "a", formats=("svg",))
    second = isoflop.write_isoflop(table, tmp_path / "b", formats=("svg",))
    assert first
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert len({p.name for p in first}) == len(first)
    found = next(t for t in tradeoffs(table) if isoflop.costed(t, "flops_ratio"))
    axes = isoflop.draw(found, styles(table), "flops_ratio", "").axes[0]
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "cheaper to the right"


@pytest.fixture
def asked_for(table: pd.DataFrame) -> pd.DataFrame:
    """The table, of which all rows of one method were asked to cost a share of a request."""
    method = next(row["method"] for found in tradeoffs(table) for row in isoflop.costed(found, "flops_ratio"))
    rows = table["method"] == method
    return table.assign(
        request=rows.map({True: "decode-4k", False: ""}),
        asked_of=rows.map({True: "bytes", False: ""}),
        asked=table["flops_ratio"].where(rows),
        realised=(table["flops_ratio"] + 0.01).where(rows),
    )


def test_rows_that_were_asked_for_a_share_stand_at_what_they_cost_in_their_request(
    table: pd.DataFrame, asked_for: pd.DataFrame, tmp_path: Path
) -> None:
    names = {path.name for path in isoflop.write_isoflop(asked_for, tmp_path, formats=("svg",))}
    before = {path.name for path in isoflop.write_isoflop(table, tmp_path / "before", formats=("svg",))}
    new = names - before
    assert new and all(name.startswith("iso-decode-4k-bytes-") for name in new)
    assert "bytes read in decode-4k, as a share of dense" in (tmp_path / new.pop()).read_text()
    found = isoflop.asked_table(asked_for)
    assert len(found) == ((asked_for["request"] != "") & asked_for["headline"]).sum()
    assert (found["realised"] - found["asked"]).tolist() == pytest.approx([0.01] * len(found))
    assert isoflop.asked_table(table).empty


def test_amdahl():
    shares = {"linear": 0.6, "attention": 0.3, "other": 0.1}
    assert amdahl(shares, {}) == amdahl({str(i): 0.1 for i in range(10)}, {}) == 1  # tenths add up to less
    assert amdahl(shares, {"attention": 0.0}) == pytest.approx(1 / 0.7)
    assert amdahl(shares, {"attention": 0.5, "linear": 0.5}) == pytest.approx(1 / 0.55)
    bounds = isoflop.bounds(shares, {"quest": {"attention": 0.1}, "wanda": {"linear": 0.1}}).set_index("method")
    assert bounds.loc["quest", "of"] == "linear"
    assert bounds.loc["wanda", "of"] == "attention"
    assert bounds.loc["wanda", "bound"] == pytest.approx(1 / 0.46)
    with pytest.raises(InputError, match="add up"):
        amdahl({"linear": 0.5}, {})
    with pytest.raises(InputError, match="no share"):
        amdahl(shares, {"heads": 0.1})
