"""The evaluation metadata of a Hugging Face model card (`model-index`), of every system of some results folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from sparsebench.reports import notation
from sparsebench.reports.collect import collect
from sparsebench.reports.tables import records

TASKS = {"causal-lm": "text-generation", "retrieval": "text-retrieval"}


def model_card(results_folders: Sequence[str | os.PathLike[str]]) -> str:
    """Front matter for a model card: one model for each system and method, with its headline metrics.

    Each metric has its baseline, difference, interval and verdict among its arguments. Failed cells, and the baseline's
    own noise rows, are left out.

    Raises:
        InputError: A folder that holds no results.
    """
    rows = [row for row in records(collect(*results_folders)) if row["headline"] and row["value"] is not None]
    models: dict[str, list[EvalResult]] = {}
    for row in rows:
        if row["role"] != "noise":
            models.setdefault(_name(row), []).append(_result(row))
    index = [entry for name in sorted(models) for entry in eval_results_to_model_index(name, models[name])]
    return f"---\n{yaml.safe_dump({'model-index': index}, sort_keys=False, allow_unicode=True, width=120)}---\n"


def _name(row: dict[str, Any]) -> str:
    parts = [notation.model_name(row["model"]), row["label"] or row["method"], row["config"]]
    return " ".join(part for part in (*parts, f"seed {row['seed']}" if row["seed"] else "") if part)


def _result(row: dict[str, Any]) -> EvalResult:
    arguments = {
        "n": row["n"],
        "baseline": row["dense"],
        "difference": row["delta"],
        "difference_interval": [row["delta_low"], row["delta_high"]],
        "verdict": row["verdict"],
        "sparsity": row["sparsity"],
        "sparsity_of": row["sparsity_of"] or None,
        "cell": row["cell"],
    }
    known = {k: v for k, v in arguments.items() if v is not None and v != [None, None]}
    retrieval = row["family"] == "retrieval"
    return EvalResult(
        task_type=TASKS["retrieval" if retrieval else "causal-lm"],
        dataset_type=notation.slug(row["task"]),
        dataset_name=row["task"],
        dataset_revision=row["data_hash"] or None,
        metric_type=row["metric"].split(" ")[0],
        metric_name=row["metric"],
        metric_value=row["value"],
        metric_args=known,
    )
