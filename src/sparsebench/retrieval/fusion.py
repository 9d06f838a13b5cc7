"""Fusing runs: weighted sums of scores, as they are or min-max normalised, and reciprocal ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.run import Run


def weighted_sum(
    runs: Sequence[Run],
    weights: Sequence[float],
    *,
    normalise: bool = True,
    missing: Literal["zero", "minimum"] = "zero",
    depth: int | None = None,
) -> Run:
    """The weighted sum of each document's scores.

    Args:
        runs: Runs over the same documents and queries.
        weights: One for each run.
        normalise: Bring each run's scores of a query to [0, 1] first (min-max); where all are equal, to 0.
        missing: What a document gets from a run that has not found it: nothing, or the least score that the run gives
            for the query. Of normalised scores the least is 0, so there it makes no difference.
        depth: How many documents of each query to keep; all when not given.

    Raises:
        InputError: Runs and weights differ in number, or runs in queries or documents.
    """
    if len(runs) != len(weights):
        raise InputError(f"{len(runs)} runs have {len(weights)} weights")
    parts, floors = [], np.zeros(len(runs[0].query_ids) if runs else 0)
    for run, weight in zip(runs, weights, strict=True):
        scores = min_max(run.hits) if normalise else run.hits.scores.astype(np.float64)
        if missing == "minimum" and not normalise:
            _, least = _extremes(run.hits)
            scores = scores - least[run.hits.query_of]
            floors += weight * least
        parts.append(weight * scores)
    return _sum(runs, parts, floors, depth)


def interpolate(sparse: Run, dense: Run, alpha: float, depth: int | None = None) -> Run:
    """The sum alpha x sparse + (1 - alpha) x dense of min-max normalised scores.

    Source: Li et al., 2022, "To Interpolate or not to Interpolate", arXiv 2205.00235.

    Raises:
        InputError: alpha is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha = {alpha} is not between 0 and 1")
    return weighted_sum([sparse, dense], [alpha, 1 - alpha], depth=depth)


def reciprocal_rank_fusion(runs: Sequence[Run], k: int = 60, depth: int | None = None) -> Run:
    """The sum over runs of 1 / (k + rank), ranks from 1.

    Source: Cormack, Clarke and Büttcher, 2009.

    Raises:
        InputError: k is negative, or runs differ in queries or documents.
    """
    if k < 0:
        raise InputError(f"reciprocal rank fusion with k = {k}", "k must be 0 or more; 60 is usual")
    floors = np.zeros(len(runs[0].query_ids) if runs else 0)
    return _sum(runs, [1 / (k + run.hits.ranks) for run in runs], floors, depth)


def min_max(hits: Hits) -> NDArray[np.float64]:
    """Each query's scores brought to [0, 1]; 0 where all are equal. `float64 [hits]`."""
    greatest, least = _extremes(hits)
    spread = np.where(greatest > least, greatest - least, 1)
    return (hits.scores - least[hits.query_of]) / spread[hits.query_of]


def _extremes(hits: Hits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Greatest and least score of each query, 0 where it has none; the first and the last, since hits are ranked."""
    greatest, least = np.zeros(len(hits)), np.zeros(len(hits))
    some = hits.counts > 0
    greatest[some] = hits.scores[hits.starts[:-1][some]]
    least[some] = hits.scores[hits.starts[1:][some] - 1]
    return greatest, least


def _sum(
    runs: Sequence[Run], parts: Sequence[NDArray[np.float64]], floors: NDArray[np.float64], depth: int | None
) -> Run:
    """The run whose scores are the sums of a document's parts, over what any run has found."""
    if not runs:
        raise InputError("there are no runs to fuse")
    first = runs[0]
    for run in runs[1:]:
        if run.query_ids != first.query_ids:
            raise InputError("runs to be fused answer different queries, or the same in another order")
        if run.doc_ids is not first.doc_ids and run.doc_ids != first.doc_ids:
            raise InputError("runs to be fused rank different collections", "give each the collection's doc_ids")
    documents = len(first.doc_ids)
    pairs = np.concatenate([run.hits.query_of * documents + run.hits.docs for run in runs])
    found, place = np.unique(pairs, return_inverse=True)
    scores = np.bincount(place, weights=np.concatenate(parts), minlength=len(found))
    queries = found // documents
    hits = Hits.ranked(queries, found % documents, scores + floors[queries], len(first.query_ids))
    return Run(first.query_ids, first.doc_ids, hits if depth is None else hits.cut(depth))
