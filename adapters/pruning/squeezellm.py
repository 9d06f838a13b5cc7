"""SqueezeLLM: codes into values of a row's own, placed where errors cost most, and outliers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning._storing import DENSE_BITS, StoringAdapter
from sparsebench.budget import Budget
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.weights import Stored


class SqueezeLLM(StoringAdapter):
    """Dense-and-sparse quantisation: weighted k-means for each output row, and a sparse matrix of 16-bit values."""

    card: ClassVar[MethodCard] = MethodCard(
        id="squeezellm",
        family="pruning",
        title="SqueezeLLM",
        summary="Each row's weights become codes into a few values of its own, weighted by squared gradients; the "
        "largest and the most sensitive weights are kept apart in a sparse matrix.",
        paper=Paper(
            title="SqueezeLLM: Dense-and-Sparse Quantization",
            authors="Sehoon Kim and Coleman Hooper and Amir Gholami and Zhen Dong and Xiuyu Li and Sheng Shen and "
            "Michael W. Mahoney and Kurt Keutzer",
            year=2024,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2306.07629",
            key="kim2024squeezellm",
        ),
        unit="bit",
        adaptivity="static",
        budgets=("bits",),
        training="gradient",
        nearest="rtn",
        differs="values lie where errors cost most instead of evenly, and outliers are not rounded",
        deviations=(
            "outliers are the largest share of each matrix; the released code cuts at a multiple of its quartiles",
            "k-means starts from greedy splits of each row, not from a random draw",
            "gradients are of the suite's calibration text, in the model's dtype",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    sensitive: float = Field(0.0005, ge=0, lt=1)
    """Share of each matrix that is kept apart because its squared gradient is largest."""
    outliers: float = Field(0.004, ge=0, lt=1)
    """Share of each matrix that is kept apart because it is largest."""
    sequences: int = Field(100, ge=1)
    """Most calibration sequences whose gradients are read."""

    def check_budget(self, budget: Budget | None) -> None:
        """Whether this method takes that budget.

        Raises:
            InputError: It does not.
        """
        super().check_budget(budget)
        if budget is not None and not (1 <= budget.number <= 8 or budget.number >= DENSE_BITS):
            raise InputError(f"{self.card.id} has no codes of {budget.label}", "it takes 1 to 8 bits; 16 is dense")

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Squared gradients, shared by all budgets."""
        from sparsebench.adapters.pruning._gradients import fisher_diagonal

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        state = fisher_diagonal(system, calibration, self.sequences)
        read = min(self.sequences, calibration.sequences)
        facts = {"calibration": calibration.describe(), "gradient_sequences": read}
        return Prepared(state, facts, tokens=read * calibration.length)

    def encode(self, name: str, weight: torch.Tensor, state: Any, budget: Budget) -> torch.Tensor:
        """See `StoringAdapter.encode`."""
        from sparsebench.adapters.pruning import _quantise
        from sparsebench.adapters.selection import smallest

        fisher = state[name].to(weight.device)
        flat = (1, weight.numel())
        sensitive, outliers = self._apart(weight.numel())
        apart = smallest(-fisher.reshape(flat), sensitive)
        apart |= smallest(weight.abs().neg().reshape(flat).masked_fill(apart, 0), outliers)
        apart = apart.reshape(weight.shape)
        rest = weight.masked_fill(apart, 0)
        coded = _quantise.to_nearest_of(rest, fisher.masked_fill(apart | (rest == 0), 0), 2 ** int(budget.number))
        return weight.sign() * _quantise.half(weight.abs()) * apart + coded.masked_fill(apart, 0)

    def _apart(self, size: int) -> tuple[int, int]:
        return round(self.sensitive * size), round(self.outliers * size)

    def stored(self, rows: int, columns: int, budget: Budget) -> Stored:
        """Codes, the values of each row, and the sparse matrix by rows: values, columns and where each row begins."""
        from sparsebench.systems.weights import Stored

        size, bits, apart = rows * columns, int(budget.number), sum(self._apart(rows * columns))
        index = 16 if columns <= 2**16 else 32
        parts = {"codes": float(size * bits), "values of rows": 16.0 * rows * 2**bits}
        if apart:
            parts |= {"outliers": 16.0 * apart, "outlier columns": float(index * apart), "rows": 32.0 * (rows + 1)}
        return Stored(size, size, parts)
