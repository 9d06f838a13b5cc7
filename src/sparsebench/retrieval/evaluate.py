"""Effectiveness of a run, as trec_eval defines it, for each judged query.

Every metric is a function of the grades in rank order, one row for each query, so one matrix serves them all.

Means are over every judged query, as trec_eval does with `-c`: a query that the run does not answer counts 0, and so
does one that has no relevant document (`Collection.describe` counts those). A mean over answered queries alone would
reward a run for leaving out what it finds hard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection, Qrels, position
from sparsebench.retrieval.run import Run

Floats: TypeAlias = NDArray[np.float64]

EVALUATOR = "trec_eval-c/1"
"""Which definitions these are; it changes when any number would."""

STANDARD = ("nDCG@10", "Recall@100", "MRR@10", "MAP@100", "P@10")


def ndcg(grades: Floats, ideal: Floats, k: int) -> Floats:
    """Discounted gain of the first k over that of the best possible first k; the gain is the grade itself.

    Args:
        grades: Grades in rank order, 0 where nothing was retrieved or judged, `[queries, depth]`.
        ideal: All judged grades in descending order, 0 beyond, `[queries, judged]`.
        k: The cut-off.

    Source: Järvelin and Kekäläinen, 2002; trec_eval's `ndcg_cut`.
    """
    return _ratio(_dcg(grades[:, :k]), _dcg(ideal[:, :k]))


def recall(grades: Floats, ideal: Floats, k: int) -> Floats:
    """Relevant documents among the first k, over all relevant ones."""
    return _ratio(_relevant(grades[:, :k]), _relevant(ideal))


def precision(grades: Floats, ideal: Floats, k: int) -> Floats:
    """Relevant documents among the first k, over k."""
    return _relevant(grades[:, :k]) / k


def reciprocal_rank(grades: Floats, ideal: Floats, k: int) -> Floats:
    """One over the rank of the first relevant document, 0 when it is beyond k."""
    relevant = grades[:, :k] > 0
    if not relevant.size:
        return np.zeros(len(grades))
    return np.where(relevant.any(axis=1), 1 / (relevant.argmax(axis=1) + 1), 0.0)


def average_precision(grades: Floats, ideal: Floats, k: int) -> Floats:
    """Precision at the rank of each relevant document among the first k, summed, over all relevant documents."""
    relevant = grades[:, :k] > 0
    precisions = relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)
    return _ratio((precisions * relevant).sum(axis=1), _relevant(ideal))


_MEASURES: dict[str, Callable[[Floats, Floats, int], Floats]] = {
    "nDCG": ndcg,
    "Recall": recall,
    "P": precision,
    "MRR": reciprocal_rank,
    "MAP": average_precision,
}


@dataclass(frozen=True)
class Evaluation:
    """Values of each metric for each judged query.

    Attributes:
        query_ids: The judged queries, in the collection's order.
        values: By metric name, `float64 [queries]`.
        unanswered: Judged queries for which the run has no document.
        unjudged: Queries of the run that the collection does not judge; they count nowhere.
    """

    query_ids: Sequence[str]
    values: Mapping[str, Floats]
    unanswered: Sequence[str]
    unjudged: Sequence[str]

    def means(self) -> dict[str, float]:
        """The mean of each metric over all judged queries."""
        return {metric: float(values.mean()) for metric, values in self.values.items()}


def evaluate(
    collection: Collection,
    run: Run | Mapping[str, Mapping[str, float]],
    metrics: Iterable[str] = STANDARD,
    *,
    depth: int | None = None,
) -> Evaluation:
    """Values of a run on a collection.

    Args:
        collection: The judgements, and whether identical ids are dropped.
        run: A run, or `{query id: {document id: score}}`.
        metrics: Names such as `nDCG@10`, `Recall@100`, `MRR@10`, `MAP@100`, `P@10`; `MAP` is of the whole ranking.
        depth: Ranks that a whole ranking has at most; None: all of the run.

    Raises:
        InputError: A metric name is wrong.
    """
    return evaluate_qrels(
        collection.qrels,
        collection.query_ids,
        run,
        metrics,
        drop_identical_ids=collection.drop_identical_ids,
        depth=depth,
    )


def evaluate_qrels(
    qrels: Qrels,
    query_ids: Sequence[str],
    run: Run | Mapping[str, Mapping[str, float]],
    metrics: Iterable[str] = STANDARD,
    *,
    drop_identical_ids: bool = False,
    depth: int | None = None,
) -> Evaluation:
    """As `evaluate`, from bare judgements."""
    parsed = {metric: parse_metric(metric) for metric in metrics}
    if not isinstance(run, Run):
        run = Run.from_dict(run)
    if drop_identical_ids:
        run = run.without_identical_ids()
    longest = int(run.hits.counts.max(initial=0))
    whole = longest if depth is None else min(depth, longest)
    deepest = max((whole if k is None else min(k, longest) for _, k in parsed.values()), default=0)
    grades = _ranked_grades(qrels, query_ids, run, deepest)
    ideal = _ideal_grades(qrels, query_ids)
    everything = max(whole, ideal.shape[1])
    values = {
        metric: measure(grades[:, :whole], ideal, everything) if k is None else measure(grades, ideal, k)
        for metric, (measure, k) in parsed.items()
    }
    answered = {qid for qid, count in zip(run.query_ids, run.hits.counts.tolist(), strict=True) if count}
    return Evaluation(
        query_ids=query_ids,
        values=values,
        unanswered=[qid for qid in query_ids if qid not in answered],
        unjudged=[qid for qid in run.query_ids if qid not in qrels],
    )


def parse_metric(name: str) -> tuple[Callable[[Floats, Floats, int], Floats], int | None]:
    """The measure and the cut-off of a metric's name.

    Raises:
        InputError: There is no such metric.
    """
    found = re.fullmatch(r"(\w+?)(?:@([1-9]\d{0,11}))?", name, re.ASCII)
    if found is None or found[1] not in _MEASURES or (found[1] == "P" and found[2] is None):
        raise InputError(f"unknown metric {name!r}", f"there are {', '.join(f'{m}@k' for m in _MEASURES)}")
    return _MEASURES[found[1]], int(found[2]) if found[2] else None


def _ranked_grades(qrels: Qrels, query_ids: Sequence[str], run: Run, depth: int) -> Floats:
    """Grades in rank order, `[queries, depth]`."""
    row_of = {qid: row for row, qid in enumerate(run.query_ids)}
    grade_of = np.zeros(len(run.doc_ids))
    ranked = np.zeros((len(query_ids), depth))
    for query, qid in enumerate(query_ids):
        if qid not in row_of:
            continue
        docs = run.hits.row(row_of[qid])[0][:depth]
        judged = {position(run.doc_ids, doc): grade for doc, grade in qrels[qid].items() if grade > 0}
        judged.pop(-1, None)
        places = list(judged)
        grade_of[places] = list(judged.values())
        ranked[query, : len(docs)] = grade_of[docs]
        grade_of[places] = 0
    return ranked


def _ideal_grades(qrels: Qrels, query_ids: Sequence[str]) -> Floats:
    """Positive grades in descending order, `[queries, most judged]`."""
    rows = [sorted((grade for grade in qrels[qid].values() if grade > 0), reverse=True) for qid in query_ids]
    ideal = np.zeros((len(rows), max(map(len, rows), default=0)))
    for query, row in enumerate(rows):
        ideal[query, : len(row)] = row
    return ideal


def _relevant(grades: Floats) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = (grades > 0).sum(axis=1)
    return counts


def _dcg(grades: Floats) -> Floats:
    return grades @ (1 / np.log2(np.arange(2, grades.shape[1] + 2)))


def _ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
