import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from synthetic_results import CHOICE, HOSTILE, LEVELS, PPL, SyntheticMethod, Writer, put_again, write_suite

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.reports.atom import UNKNOWN, Entry, feed, time_of
from sparsebench.reports.history import history, render
from sparsebench.store import Store

METHOD = SyntheticMethod("method", "pruning", LEVELS, 0.0)
ATOM = "{http://www.w3.org/2005/Atom}"


def run(folder: Path, damage: float = 0.0, day: int = 1, **changes: object) -> Path:
    """A folder with one method whose samples are the baseline's, less `damage`."""
    store = Store.create(folder)
    write_suite(store)
    writer = Writer(store, samples=300)
    started = f"2026-01-{day:02}T00:00:00+00:00"
    for task in (CHOICE, PPL):
        base = writer.cell(task, "pruning", started=started)
        frame = base.samples()
        assert frame is not None
        writer.cell(
            task,
            "pruning",
            method=METHOD,
            budget=3,
            baseline=base.id,
            role="method",
            frame=hurt(frame, task.metrics[0].column, damage),
            started=started,
            **changes,  # type: ignore[arg-type]
        )
    return folder


def hurt(frame: pd.DataFrame, column: str, damage: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    if column == "correct":
        return frame.assign(correct=np.where(rng.random(len(frame)) < damage, 0.0, frame["correct"]))
    return frame.assign(
        nll=frame["nll"] + (damage + rng.normal(0, 0.01, len(frame)) * (damage > 0)) * frame["nll.weight"]
    )


def test_nothing_changes_in_equal_folders(tmp_path: Path) -> None:
    found = history(*(run(tmp_path / f"r{k}", day=k) for k in (1, 2, 3)))
    assert found.steps == () and found.cells == 4
    assert "no steps in 3 folders" in render(found, "text")


def test_a_step_is_reported_once_where_it_shows(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"r{k}", damage=0.3 * (k >= 3), day=k) for k in (1, 2, 3, 4)]
    found = history(*folders)
    assert {(s.folder, s.since, s.verdict, s.what) for s in found.steps} == {
        ("r3", "r1", "regressed", "accuracy"),
        ("r3", "r1", "regressed", "perplexity"),
    }
    assert all(step.date.startswith("2026-01-03") for step in found.steps)
    assert all("method" in step.name for step in found.steps)


def test_steps_down_and_up_again(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"r{k}", damage=0.3 * (k == 2), day=k) for k in (1, 2, 3)]
    verdicts = [(s.folder, s.verdict, s.since) for s in history(*folders).steps if s.what == "perplexity"]
    assert verdicts == [("r2", "regressed", "r1"), ("r3", "improved", "r2")]


def test_a_slow_drift_shows_when_it_has_added_up(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"r{k}", damage=0.012 * k, day=k + 1) for k in range(7)]
    steps = [s for s in history(*folders).steps if s.what == "perplexity"]
    assert [(s.folder, s.since) for s in steps] == [("r4", "r0")], "each step by itself is within the margin"


def test_counts_that_change_are_one_step(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    b = run(tmp_path / "b", day=2, flops=9e8, counters={"weights.zeros": 1.0, "weights.total": 1e6})
    steps = [s for s in history(a, b).steps]
    assert {(s.what, s.verdict) for s in steps} == {("counts", "changed")} and len(steps) == 2
    assert all("and 1 more" in s.detail for s in steps)


def test_cells_that_fail_or_are_gone(tmp_path: Path) -> None:
    import shutil

    a, b, c, d = (run(tmp_path / name, day=k) for k, name in enumerate("abcd", start=1))
    for folder in (b, c):
        gone = next(cell for cell in Store.open(folder) if cell.spec.stack and cell.spec.task.id == PPL.id)
        shutil.rmtree(gone.folder)
    steps = history(a, b, c, d).steps
    assert [(s.folder, s.verdict) for s in steps] == [("b", "missing")], "said once, and back without a step"


def test_what_keeps_failing_is_no_step(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, day=k) for k, name in enumerate("ab", start=1)]
    for folder in folders:
        store = Store.open(folder)
        cell = next(cell for cell in store if cell.spec.stack)
        outcome = cell.record.outcome.model_copy(update={"status": "failed", "error": "boom", "metrics": []})
        record = cell.record.model_copy(update={"outcome": outcome, "samples_sha256": None})
        put_again(store, cell.spec, record, cell.environment, None)
    assert not history(*folders).steps


def test_a_folder_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    with pytest.raises(InputError, match="3 results folders are named, but only 2"):
        history(a, b, a)


def test_the_feed_is_atom_with_fixed_bytes(tmp_path: Path) -> None:
    found = history(run(tmp_path / "a"), run(tmp_path / "b", damage=0.3, day=2))
    text = render(found, "atom")
    assert text == render(found, "atom")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{ATOM}feed" and len(root.findall(f"{ATOM}entry")) == 2
    assert root.findtext(f"{ATOM}updated") == "2026-01-02T00:00:00Z"
    ids = [entry.findtext(f"{ATOM}id") for entry in root.iter(f"{ATOM}entry")]
    assert len(set(ids)) == 2 and all(str(i).startswith("urn:sha256:") for i in ids)
    assert json.loads(render(found, "json"))["steps"][0]["verdict"] == "regressed"
    with pytest.raises(UnknownNameError):
        render(found, "html")


def test_what_a_feed_cannot_hold_is_left_out() -> None:
    text = feed("t\x00itle", [Entry(HOSTILE, HOSTILE, "not a time"), Entry("b", "s", "2026-01-01", link="a?b&c")])
    root = ElementTree.fromstring(text)
    assert [e.findtext(f"{ATOM}updated") for e in root.iter(f"{ATOM}entry")] == ["2026-01-01T00:00:00Z", UNKNOWN]
    assert "<script>" not in text


def test_times_are_given_in_utc() -> None:
    assert time_of("2026-01-02T03:04:05+02:00") == "2026-01-02T01:04:05Z"
    assert time_of("yesterday") == UNKNOWN


def test_one_folder_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        history(run(tmp_path / "a"))
