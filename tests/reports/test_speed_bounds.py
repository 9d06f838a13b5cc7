"""The bound of Amdahl's law beside each cell: from its account and from measured shares of time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sparsebench.account import Account, Counted, Line, account
from sparsebench.cost import ModelShape
from sparsebench.errors import InputError
from sparsebench.reports.speed_bounds import COLUMNS, TimeShares, speed_bounds
from sparsebench.timeshares import PARTS

SHARES = {"linear": 0.5, "attention": 0.4, "head": 0.05, "other": 0.05}


def flops(phase: str, item: str, dense: float, sparse: float) -> Line:
    return Line(phase, "flops", item, "", dense, sparse)  # type: ignore[arg-type]


def test_what_is_left_by_hand() -> None:
    lines = (
        flops("prefill", "linear", 600.0, 300.0),
        flops("prefill", "attention", 400.0, 40.0),
        flops("prefill", "index", 0.0, 20.0),
        flops("decode", "linear", 6.0, 6.0),
        flops("decode", "attention", 4.0, 1.0),
        Line("decode", "bytes", "weights", "", 9.0, 1.0),
    )
    assert Account(lines).left("prefill") == {"linear": 0.5, "attention": pytest.approx(0.15)}
    assert Account(lines).left("decode") == {"linear": 1.0, "attention": 0.25}
    assert Account(lines[:4]).left("decode") == {}


def test_a_dense_account_leaves_all() -> None:
    shape = ModelShape(
        hidden=48, layers=2, heads=4, kv_heads=2, head_dim=12, value_dim=12, vocab=260, linear_params=1000,
        stored_params=1000, parameters=2000,
        head_params=480, windows=(None, None), bytes_per_weight=2.0, bytes_per_entry=2.0,
    )  # fmt: skip
    counted = Counted.of(
        shape, {"prefill.tokens": 10.0, "prefill.causal_pairs": 55.0, "prefill.scored": 1.0}, "prefill"
    )
    nothing = Counted.of(shape, {}, "decode")
    assert account(shape, counted, nothing).left("prefill") == {"linear": 1.0, "attention": 1.0, "head": 1.0}


def test_shares_go_to_a_file_and_back(tmp_path: Path) -> None:
    times = TimeShares("prefill", 4096, SHARES)
    times.write(tmp_path / "shares.json", model="path:x")
    assert TimeShares.read(tmp_path / "shares.json") == times
    assert set(SHARES) == set(PARTS)


@pytest.mark.parametrize("text", ["", "[]", '{"shares": {"linear": 1.0}}', '{"phase": "x", "prompt": 1, "shares": {}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shares.json"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no shares of time"):
        TimeShares.read(path)
    with pytest.raises(InputError, match="No such file"):
        TimeShares.read(tmp_path / "none.json")


def test_results_of_retrievers_have_no_bound(results: Path) -> None:
    """Cells without sizes of a language model are left out, and the columns are there."""
    found = speed_bounds([results], TimeShares("prefill", 4096, SHARES))
    assert list(found.columns) == COLUMNS
    assert isinstance(found, pd.DataFrame)
    assert ((found["bound"] >= 1 / (SHARES["linear"] + 1)) | found["bound"].isna()).all()
