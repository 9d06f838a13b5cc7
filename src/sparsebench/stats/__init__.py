"""Statistics of paired comparisons: pure functions of arrays, seeded by integers.

Everything is paired: a sparse system and its baseline on the same samples. The modules, from what is asked to how it is
answered:

- `compare`: `compare` and `compare_many`, from samples to a `Comparison` with its verdict
- `comparison`, `verdict`: what a comparison holds, and the rules of the four verdicts
- `value`: one system by itself: the interval of its value, and whether it is above chance
- `safe`: the largest safe level by fixed-sequence testing; "on all tasks" by intersection-union
- `multiplicity`: Holm, Holm over fixed sequences, and Benjamini-Hochberg
- `limits`: a loss against a limit that is claimed: below it, above it, or neither
- `power`, `design`: minimum detectable effects, required samples, and what clustering costs
- `breakpoint`, `curves`: whether and where a curve has a knee
- `calibration`: whether a model's confidence is its accuracy
- `trend`: scaling trends with a hold-out
- `inference`: which method is used when, and why
- `bounds`: the methods: t, bootstrap-t, score, exact proportions, and equivalence (`tost`)
- `mcnemar`, `resample`: exact McNemar; cluster bootstrap and sign-flip permutation
- `clusters`, `paired`, `scale`: sums by cluster, the samples of a comparison, and its scales
"""

from sparsebench.stats.bounds import tost
from sparsebench.stats.breakpoint import Breakpoint, find_breakpoint
from sparsebench.stats.calibration import CalibrationError, calibration_error
from sparsebench.stats.compare import compare, compare_many
from sparsebench.stats.comparison import Comparison, Margin
from sparsebench.stats.design import design_effect
from sparsebench.stats.limits import Limit, LossAgainst, loss_against
from sparsebench.stats.mcnemar import McNemar, mcnemar
from sparsebench.stats.multiplicity import benjamini_hochberg, holm, holm_of_sequences
from sparsebench.stats.power import (
    mde_binary,
    mde_continuous,
    power_of,
    required_n_binary,
    required_n_continuous,
)
from sparsebench.stats.safe import LargestSafe, intersection_union, largest_safe
from sparsebench.stats.trend import Trend, fit_trend
from sparsebench.stats.value import Signal, signal, value_bounds, value_bounds_many
from sparsebench.stats.verdict import Verdict

__all__ = [
    "Breakpoint",
    "CalibrationError",
    "Comparison",
    "LargestSafe",
    "Limit",
    "LossAgainst",
    "Margin",
    "McNemar",
    "Signal",
    "Trend",
    "Verdict",
    "benjamini_hochberg",
    "calibration_error",
    "compare",
    "compare_many",
    "design_effect",
    "find_breakpoint",
    "fit_trend",
    "holm",
    "holm_of_sequences",
    "intersection_union",
    "largest_safe",
    "loss_against",
    "mcnemar",
    "mde_binary",
    "mde_continuous",
    "power_of",
    "required_n_binary",
    "required_n_continuous",
    "signal",
    "tost",
    "value_bounds",
    "value_bounds_many",
]
