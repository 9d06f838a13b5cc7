"""Runs and values in the JSON forms of MTEB, for its tools and its repository of results."""

from __future__ import annotations

import re
from typing import Any

from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import EVALUATOR, Evaluation
from sparsebench.retrieval.run import Run

_NAMES = {"nDCG": "ndcg", "MAP": "map", "Recall": "recall", "P": "precision", "MRR": "mrr"}


def predictions(
    run: Run, split: str, model: str, revision: str | None = None, subset: str = "default"
) -> dict[str, Any]:
    """A run as MTEB's prediction file: scores by subset, split, query and document.

    Args:
        run: The run.
        split: The collection's split.
        model: The model's name.
        revision: The model's revision.
        subset: MTEB's subset; `default` for a collection that has only one.
    """
    return {"mteb_model_meta": {"model_name": model, "revision": revision}, subset: {split: run.to_dict()}}


def result(
    collection: Collection,
    evaluation: Evaluation,
    *,
    main: str = "nDCG@10",
    seconds: float | None = None,
    languages: list[str] | None = None,
) -> dict[str, Any]:
    """Mean values as MTEB's result file of one task; the content hash stands for the data set's revision.

    Args:
        collection: The collection.
        evaluation: Values of a run on it.
        main: The metric of `main_score`.
        seconds: Wall time of encoding and searching; None where it was not measured.
        languages: MTEB's language codes.

    Raises:
        InputError: The main metric was not evaluated, or a metric has no name in MTEB.
    """
    means = evaluation.means()
    if main not in means:
        raise InputError(f"the main metric {main!r} was not evaluated", f"there are {', '.join(means)}")
    scores: dict[str, Any] = {metric_name(metric): value for metric, value in means.items()}
    scores |= {"main_score": means[main], "hf_subset": "default", "languages": languages or ["eng-Latn"]}
    return {
        "task_name": collection.name,
        "dataset_revision": collection.content_hash,
        "mteb_version": None,
        "evaluator": EVALUATOR,
        "evaluation_time": seconds,
        "kg_co2_emissions": None,
        "scores": {collection.split: [scores]},
    }


def metric_name(metric: str) -> str:
    """MTEB's name of a metric: `ndcg_at_10` of `nDCG@10`; a metric of the whole ranking has none.

    Raises:
        InputError: There is none.
    """
    found = re.fullmatch(r"(\w+)@(\d+)", metric)
    if found is None or found[1] not in _NAMES:
        raise InputError(f"metric {metric!r} has no name in MTEB")
    return f"{_NAMES[found[1]]}_at_{found[2]}"
