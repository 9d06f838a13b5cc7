"""The script behind submissions: what a change to the published results is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_results import PRUNING, QA, Writer, write_suite

from sparsebench.store import Store

SCRIPT = Path(__file__).parents[2] / "scripts" / "submission.sh"


def submit(base: Path, change: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with the `sparsebench` of this environment."""
    command = tmp_path / "bin" / "sparsebench"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sparsebench "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([SCRIPT, base, change], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkouts with the same published results."""
    published = tmp_path / "base" / "leaderboard" / "results" / "known"
    store = Store.create(published)
    write_suite(store)
    writer = Writer(store, samples=60)
    base = writer.cell(QA, "pruning")
    writer.cell(QA, "pruning", method=PRUNING[0], baseline=base.id, role="method")
    shutil.copytree(tmp_path / "base", tmp_path / "change")
    return tmp_path / "base", tmp_path / "change"


def test_what_did_not_change_is_not_looked_at(checkouts: tuple[Path, Path], tmp_path: Path) -> None:
    done = submit(*checkouts, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_edited_score_fails_and_is_named(checkouts: tuple[Path, Path], tmp_path: Path) -> None:
    record = next((checkouts[1] / "leaderboard/results/known/cells").glob("*/record.json"))
    text = record.read_text()
    value = text.split('"value": ')[1].split(",")[0].split("\n")[0]
    record.write_text(text.replace(f'"value": {value}', '"value": 0.999', 1))
    done = submit(*checkouts, tmp_path)
    assert done.returncode == 1 and "does not verify" in done.stdout and "0.999" in done.stdout


def test_folders_that_are_gone_or_oddly_named_fail(checkouts: tuple[Path, Path], tmp_path: Path) -> None:
    results = checkouts[1] / "leaderboard/results"
    (results / "known").rename(results / "a b;touch x")
    done = submit(*checkouts, tmp_path)
    assert done.returncode == 2 and "Taken away" in done.stdout
    shutil.rmtree(results / "a b;touch x")
    assert submit(*checkouts, tmp_path).returncode == 1
