"""SparseBench: what a sparse method costs and keeps.

run(suite)                          a suite by name or file: the tidy results table
evaluate(model, tokenizer, tasks)   tasks on a model that is already in memory
adapters.create("wanda", sparsity=0.5)
read_lm_eval(folder)                result files of lm-eval as paired samples
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsebench.api import evaluate, read_lm_eval, run

__all__ = ["__version__", "evaluate", "read_lm_eval", "run"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line and listings do not wait for torch and pandas.
    if name in ("evaluate", "read_lm_eval", "run"):
        from sparsebench import api

        return getattr(api, name)
    raise AttributeError(f"module 'sparsebench' has no attribute {name!r}")
