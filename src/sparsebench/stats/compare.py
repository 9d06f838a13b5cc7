"""Sparse systems against their baseline on the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import InputError
from sparsebench.stats.clusters import as_table, cluster_index, same_samples
from sparsebench.stats.comparison import Comparison, Margin, Question, conclude
from sparsebench.stats.inference import infer
from sparsebench.stats.paired import Kind, PairedSamples, Transform, right_or_wrong

Array = npt.NDArray[np.float64]


def compare(
    dense: npt.ArrayLike,
    sparse: npt.ArrayLike,
    *,
    weight_dense: npt.ArrayLike | None = None,
    weight_sparse: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    higher_is_better: bool = True,
    margin: Margin | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = 10_000,
    noise: float | None = None,
    chance: float | None = None,
) -> Comparison:
    """Compare one sparse system with its baseline; the arguments are those of `compare_many`, with one column."""
    columns = np.asarray(sparse, dtype=np.float64)
    if columns.ndim != 1:
        raise InputError(f"the sparse values have shape {columns.shape}", "compare takes one value a sample")
    return compare_many(
        dense,
        columns[:, None],
        weight_dense=weight_dense,
        weight_sparse=weight_sparse,
        clusters=clusters,
        kind=kind,
        transform=transform,
        higher_is_better=higher_is_better,
        margin=margin,
        alpha=alpha,
        seed=seed,
        resamples=resamples,
        noise=noise,
        chance=chance,
    )[0]


def compare_many(
    dense: npt.ArrayLike,
    sparse: npt.ArrayLike,
    *,
    weight_dense: npt.ArrayLike | None = None,
    weight_sparse: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    kind: Kind = "continuous",
    transform: Transform = "identity",
    higher_is_better: bool = True,
    margin: Margin | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = 10_000,
    noise: float | None = None,
    chance: float | None = None,
) -> list[Comparison]:
    """Compare many sparse systems with their baselines on one set of samples and one metric.

    All cells share the draws of the bootstrap, so a thousand cost little more than one. A cell's result is the same
    whichever others are compared with it, and (where clusters are given, or samples are independent) in whatever order
    the samples come.

    A sample that either system has no value for (NaN) is left out of that cell. Where only one has none it is counted
    as unpaired, and the cell can then be neither `improved` nor `non-inferior`. A p value of a resampling test is never
    below 1 / (resamples + 1): for Holm over many cells, take more than cells / alpha resamples.

    A relative margin of an independent right-or-wrong metric is taken of the baseline's observed accuracy. Its sampling
    error is left out, which errs on the safe side: the samples that count in it are those that can be lost.

    Args:
        dense: The baseline's numerators, `[samples]` for all cells or `[samples, cells]`.
        sparse: The sparse systems' numerators, `[samples, cells]`.
        weight_dense: The baseline's denominators, as `dense`; None for 1 each.
        weight_sparse: The sparse systems' denominators, as `sparse`; None for the baseline's.
        clusters: Cluster labels, `[samples]`; None for independent samples.
        kind: `binary` where numerators are 0 or 1 and all weights 1; values of which some are 0
            and all others 1 are taken as binary in any case.
        transform: `exp` for perplexities, whose numerators are negative log-likelihoods.
        higher_is_better: Which direction is a gain.
        margin: The acceptable loss; None for none, and then no verdict is `non-inferior`.
        alpha: Level of each one-sided test; intervals are two-sided at `1 - alpha`.
        seed: Seed of bootstrap and permutation, a non-negative integer.
        resamples: Resamples of either.
        noise: The absolute change between two runs of the baseline (A/A), in the metric's units.
        chance: What guessing reaches, in the metric's units.

    Raises:
        InputError: If shapes do not fit, a weight is not positive, or binary values are not 0 or 1.
    """
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha is {alpha}", "it should be between 0 and 0.5")
    values = np.asarray(sparse, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"the sparse values have shape {values.shape}", "they should be [samples, cells]")
    n, cells = values.shape
    weights = np.ones(n) if weight_dense is None else weight_dense
    tables = _Tables(
        as_table(dense, n, cells, "the baseline's values"),
        values,
        as_table(weights, n, cells, "the baseline's weights"),
        as_table(weights if weight_sparse is None else weight_sparse, n, cells, "the sparse systems' weights"),
    )
    tables.check(kind)
    if transform == "identity" and right_or_wrong(
        (tables.dense, tables.sparse), (tables.dense_weight, tables.sparse_weight)
    ):
        kind = "binary"  # whatever it was called: the exact test has no resample without variation
    question = Question(kind, transform, higher_is_better, margin, alpha, noise, chance)
    results: dict[int, Comparison] = {}
    for members, present, unpaired in tables.groups():
        index, count = cluster_index(clusters, present)
        samples = PairedSamples(*tables.at(present, members), index, count, kind, transform)
        inferences = infer(samples, resamples=resamples, seed=seed)
        for column, member in enumerate(members):
            results[int(member)] = conclude(question, samples, column, inferences[column], int(unpaired[column]))
    return [results[cell] for cell in range(cells)]


@dataclass(frozen=True)
class _Tables:
    """The inputs, all `[samples, cells]`."""

    dense: Array
    sparse: Array
    dense_weight: Array
    sparse_weight: Array

    def check(self, kind: Kind) -> None:
        """Refuse weights that are not positive and binary values that are not 0 or 1."""
        for values, weight in ((self.dense, self.dense_weight), (self.sparse, self.sparse_weight)):
            known = ~np.isnan(values) & ~np.isnan(weight)
            if not (weight[known] > 0).all():
                raise InputError("a weight is not positive", "a sample without part in the metric should be NaN")
            if kind == "binary" and not (np.isin(values[known], (0, 1)).all() and (weight[known] == 1).all()):
                raise InputError("a binary metric has values other than 0 and 1, or weights", "call it continuous")

    def groups(self) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_], Array]]:
        """Cells that lack the same samples: their numbers, the samples that they have, and how many are unpaired."""
        no_dense = np.isnan(self.dense) | np.isnan(self.dense_weight)
        no_sparse = np.isnan(self.sparse) | np.isnan(self.sparse_weight)
        unpaired = (no_dense ^ no_sparse).sum(0)
        for members, present in same_samples(~(no_dense | no_sparse)):
            yield members, present, unpaired[members]

    def at(self, present: npt.NDArray[np.bool_], members: npt.NDArray[np.intp]) -> tuple[Array, Array, Array, Array]:
        """The four tables at some samples of some cells."""
        rows = np.ix_(present, members)
        return self.dense[rows], self.sparse[rows], self.dense_weight[rows], self.sparse_weight[rows]
