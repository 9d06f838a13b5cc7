"""Results in experiment trackers: a run for each cell in Weights & Biases, MLflow or Trackio.

Verdicts are corrected over whole grids, so a folder is sent when it is done, not cell by cell. A tracker is imported
where it is asked for only, and finds its server and credentials in its own way.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsebench.errors import MissingError, UnknownNameError
from sparsebench.reports.collect import collect
from sparsebench.reports.tables import records

SETTINGS = (
    *("suite", "grid", "family", "method", "config", "budget", "role", "model", "task", "phase", "mode", "seed"),
    *("protocol", "dtype", "base_precision", "hardware", "cell", "baseline", "source"),
)
COSTS = ("sparsity", "flops_ratio", "bytes_ratio", "seconds", "energy")
NUMBERS = ("delta", "delta_low", "delta_high", "margin", "p_adjusted", "p_kept", "n")


@dataclass
class CellRun:
    """What a tracker is told of one cell.

    Attributes:
        name: Method, budget and task, as printed.
        settings: What was run.
        values: Numbers by name: `accuracy`, `accuracy/delta`, `sparsity`; those that are not known are left out.
        verdicts: The verdict of each metric.
    """

    name: str
    settings: dict[str, Any]
    values: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)


def log_results(
    results_folders: Sequence[str | os.PathLike[str]], tracker: str, project: str = "sparsebench"
) -> list[CellRun]:
    """Send every cell of some results folders to a tracker.

    Args:
        results_folders: Folders that `sparsebench run` wrote.
        tracker: `wandb`, `mlflow` or `trackio`.
        project: Project, or experiment of MLflow, that the runs go to.

    Returns:
        What was sent.

    Raises:
        UnknownNameError: No such tracker.
        MissingError: It is not installed.
        InputError: A folder that holds no results.
    """
    if tracker not in TRACKERS:
        raise UnknownNameError("tracker", tracker, TRACKERS)
    try:
        module = importlib.import_module(tracker)
    except ImportError:
        raise MissingError(f"{tracker} is not installed", f"pip install {tracker}") from None
    runs = cell_runs(records(collect(*results_folders)))
    for run in runs:
        TRACKERS[tracker](module, run, project)
    return runs


def cell_runs(rows: Sequence[dict[str, Any]]) -> list[CellRun]:
    """Rows of the tidy table by cell; failed cells have no values."""
    runs: dict[tuple[str, str], CellRun] = {}
    for row in rows:
        key = row["source"], row["cell"]
        if key not in runs:
            name = " ".join(
                part for part in (row["label"] or row["method"], row["task"] and f"on {row['task']}") if part
            )
            runs[key] = CellRun(name or row["cell"], {key: row[key] for key in SETTINGS if row[key] not in (None, "")})
        run, metric = runs[key], row["metric"]
        run.verdicts[metric or "cell"] = row["verdict"]
        found = {name: row[name] for name in COSTS}
        if metric:
            found |= {metric: row["value"], **{f"{metric}/{name}": row[name] for name in NUMBERS}}
        run.values |= {
            name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)
        }
    return list(runs.values())


def _to_wandb(module: Any, run: CellRun, project: str) -> None:
    """Weights & Biases; a cell that was sent before is continued under its id."""
    tags = sorted({run.settings.get("family", ""), *run.verdicts.values()} - {""})
    begun = module.init(
        project=project,
        id=run.settings["cell"],
        resume="allow",
        name=run.name,
        group=run.settings.get("suite"),
        config=run.settings,
        tags=tags,
    )
    begun.log(run.values)
    begun.summary.update({f"{metric}/verdict": verdict for metric, verdict in run.verdicts.items()})
    begun.finish()


def _to_trackio(module: Any, run: CellRun, project: str) -> None:
    """Trackio; runs are told apart by name, to which the cell's id is added."""
    verdicts = {f"{metric}/verdict": verdict for metric, verdict in run.verdicts.items()}
    module.init(project=project, name=f"{run.name} {run.settings['cell']}", config={**run.settings, **verdicts})
    module.log(run.values)
    module.finish()


def _to_mlflow(module: Any, run: CellRun, project: str) -> None:
    """MLflow, whose names may hold no `@` or `+`."""
    module.set_experiment(project)
    with module.start_run(run_name=run.name):
        module.set_tags({f"{_plain(metric)}.verdict": verdict for metric, verdict in run.verdicts.items()})
        module.log_params(run.settings)
        module.log_metrics({_plain(name): value for name, value in run.values.items()})


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)


TRACKERS: dict[str, Callable[[Any, CellRun, str], None]] = {
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "trackio": _to_trackio,
}
