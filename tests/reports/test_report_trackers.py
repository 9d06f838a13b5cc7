"""Trackers, with a module in the place of each that notes what it is told."""

import math
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sparsebench.cli import app
from sparsebench.errors import MissingError, UnknownNameError
from sparsebench.reports import trackers


class Heard:
    """The calls that a tracker would have had."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def wandb(self) -> SimpleNamespace:
        def init(**options: Any) -> SimpleNamespace:
            run = {"settings": options["config"], "name": options["name"], "options": options, "verdicts": {}}
            self.runs.append(run)
            return SimpleNamespace(
                log=lambda values: run.update(values=values),
                summary=run["verdicts"],
                finish=lambda: run.update(finished=True),
            )

        return SimpleNamespace(init=init)

    def trackio(self) -> SimpleNamespace:
        def init(**options: Any) -> None:
            verdicts = {k: v for k, v in options["config"].items() if k.endswith("/verdict")}
            self.runs.append({"settings": options["config"], "name": options["name"], "verdicts": verdicts})

        return SimpleNamespace(
            init=init,
            log=lambda values: self.runs[-1].update(values=values),
            finish=lambda: self.runs[-1].update(finished=True),
        )

    def mlflow(self) -> SimpleNamespace:
        @contextmanager
        def start_run(run_name: str) -> Any:
            self.runs.append({"name": run_name})
            yield
            self.runs[-1]["finished"] = True

        def log_metrics(values: dict[str, float]) -> None:
            assert all(re.fullmatch(r"[\w\-. /]+", name, re.ASCII) for name in values)
            self.runs[-1].update(values=values)

        return SimpleNamespace(
            set_experiment=lambda name: None,
            start_run=start_run,
            set_tags=lambda tags: self.runs[-1].update(verdicts=tags),
            log_params=lambda settings: self.runs[-1].update(settings=settings),
            log_metrics=log_metrics,
        )


@pytest.mark.parametrize("tracker", trackers.TRACKERS)
def test_each_cell_is_a_run_with_its_numbers(
    tracker: str, results: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setitem(sys.modules, tracker, getattr(heard, tracker)())
    trackers.log_results([results], tracker)
    assert sorted(run["settings"]["cell"] for run in heard.runs) == sorted(table["cell"].unique())
    assert all(run["finished"] for run in heard.runs)
    row = table[(table["method"] == "magnitude") & (table["task"] == "facts-qa") & (table["budget"] == "60%")]
    row = row[row["metric"] == "accuracy"].iloc[0]
    (run,) = (run for run in heard.runs if run["settings"]["cell"] == row["cell"])
    assert run["values"]["accuracy"] == row["value"] and run["values"]["accuracy/delta"] == row["delta"]
    assert run["values"]["sparsity"] == row["sparsity"] and "magnitude 60% on facts-qa" in run["name"]
    assert row["verdict"] in run["verdicts"].values()
    assert all(math.isfinite(value) for run in heard.runs for value in run["values"].values())
    failed = table[table["status"] == "failed"]["cell"].iloc[0]
    (run,) = (run for run in heard.runs if run["settings"]["cell"] == failed)
    assert "failed" in run["verdicts"].values()


def test_a_tracker_that_is_missing_or_unknown_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingError, match="pip install mlflow"):
        trackers.log_results([results], "mlflow")
    with pytest.raises(UnknownNameError, match="wandb"):
        trackers.log_results([results], "wanbd")


def test_the_command_sends_a_folder(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setitem(sys.modules, "trackio", heard.trackio())
    done = CliRunner().invoke(app, ["export", str(results), "--format", "trackio", "--project", "mine"])
    assert done.exit_code == 0 and f"sent {len(heard.runs)} cells" in done.output


def test_trackers_are_imported_only_when_asked_for() -> None:
    assert not {"wandb", "mlflow", "trackio"} & set(sys.modules)
