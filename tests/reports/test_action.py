"""The GitHub Action at the root of the repository: its script is run here as a runner would."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_results import PPL, SyntheticMethod, Writer, write_suite

from sparsebench.store import Store

ROOT = Path(__file__).parents[2]
METHOD = SyntheticMethod("method", "pruning", ({"sparsity": 0.5},), 0.5)

pytestmark = pytest.mark.skipif(not (ROOT / "action.yml").is_file(), reason="the action is not here")


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text())  # type: ignore[no-any-return]


def step(action: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [s for s in action["runs"]["steps"] if s["name"] == name]
    return found  # type: ignore[no-any-return]


def run(folder: Path, damage: float) -> Path:
    store = Store.create(folder)
    write_suite(store)
    writer = Writer(store, samples=200)
    base = writer.cell(PPL, "pruning")
    frame = base.samples()
    assert frame is not None
    frame["nll"] += damage * frame["nll.weight"]
    writer.cell(PPL, "pruning", method=METHOD, baseline=base.id, role="method", frame=frame)
    return folder


def test_no_input_reaches_a_script_as_text(action: dict[str, Any]) -> None:
    for each in action["runs"]["steps"]:
        assert "${{" not in each.get("run", "") and "${{" not in each.get("with", {}).get("script", "")
        if "uses" in each:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", each["uses"])
        else:
            assert each["shell"] == "bash"


def test_inputs_and_outputs_are_those_that_steps_name(action: dict[str, Any]) -> None:
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([a-z]+)", text)) == set(action["inputs"])
    assert set(re.findall(r"steps\.check\.outputs\.([a-z]+)", text)) == set(action["outputs"])


@pytest.mark.parametrize(("damage", "passed"), [(0.0, "true"), (0.5, "false")])
def test_the_check_reports_and_decides(action: dict[str, Any], tmp_path: Path, damage: float, passed: str) -> None:
    command = tmp_path / "bin" / "sparsebench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sparsebench "$@"\n')
    command.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "BASELINE": str(run(tmp_path / "base line", 0.0)),
        "CANDIDATE": str(run(tmp_path / "candidate", damage)),
        "STRICT": "false",
        "ALPHA": "0.1",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step(action, "Check")["run"]], env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs["passed"] == passed
    assert (tmp_path / "summary").read_text() == Path(outputs["report"]).read_text()
    assert ("::error" in done.stdout) == (passed == "false")
    verdict = subprocess.run(["bash", "-c", step(action, "Verdict")["run"]], env={**env, "PASSED": passed}, check=False)
    assert verdict.returncode == (passed == "false")
