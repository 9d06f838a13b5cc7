"""GPTQ: round column by column and mend the error in the columns that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.rtn import RoundToNearest
from sparsebench.budget import Budget
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.adapters.passes import InputStatistics
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


class GPTQ(RoundToNearest):
    """Codes on the same grids as by rounding to nearest, chosen so that the layer's output changes least."""

    card: ClassVar[MethodCard] = MethodCard(
        id="gptq",
        family="pruning",
        title="GPTQ",
        summary="Weights are rounded to codes of a few bits from left to right, and the columns that follow mend each "
        "column's error; none is left out.",
        paper=Paper(
            title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
            authors="Elias Frantar and Saleh Ashkboos and Torsten Hoefler and Dan Alistarh",
            year=2023,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2210.17323",
            key="frantar2023gptq",
        ),
        role="comparator",
        unit="bit",
        adaptivity="static",
        budgets=("bits",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="rtn",
        differs="mends the error of each column in the columns that follow, by SparseGPT's inverse of X X^T",
        deviations=(
            "columns are taken in their order; the released code can take those of large inputs first",
            "the paper reads 128 sequences of 2,048 tokens from C4; here the suite says what is read",
            "the inverse is taken in float64, and scales have 16 bits",
            "weights that are zero already stay zero, so that a pruned matrix stays pruned",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Rounded weights, block by block: each block is fed by the rounded blocks before it."""
        from sparsebench.adapters.passes import block_by_block
        from sparsebench.systems.weights import prunable, put, restoring

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        if budget is None:
            raise InputError(f"{self.card.id} is prepared at a budget")
        rounded: dict[str, torch.Tensor] = {}

        def quantise(site: LinearSite, inputs: InputStatistics) -> None:
            weight = self.mended(self.finite(site), inputs, int(budget.number)).to(site.weight.dtype)
            rounded[site.name] = weight.cpu()
            put(site, weight)

        sites = prunable(system)
        facts: dict[str, Any] = {"calibration": calibration.describe()}
        if not self.is_dense(budget):
            with restoring(sites):
                facts |= block_by_block(system, calibration, quantise, gram=True)
        return Prepared((budget, rounded), facts, tokens=calibration.tokens)

    def mended(self, weight: torch.Tensor, inputs: InputStatistics, bits: int) -> torch.Tensor:
        """What the codes of a matrix decode to, float32 [out, in] (Frantar et al., 2023, algorithm 1).

        The grid of a group is set when its first column is reached, from the weights as they are by then.
        """
        from sparsebench.adapters.pruning import _obs, _quantise

        if inputs.gram is None:
            raise InputError(f"{self.card.id} reads X X^T, which was not gathered")
        zeros = (weight == 0).T.contiguous()

        def begin(first: int, columns: torch.Tensor, factor: torch.Tensor) -> _obs.Settle:
            grid = _quantise.grid_of(columns.T, bits, self.symmetric)

            def settle(place: int, column: torch.Tensor) -> torch.Tensor:
                return grid.nearest(column[:, None])[:, 0].masked_fill(zeros[first + place], 0)

            return settle

        return _obs.swept(weight, inputs.gram, self.group or weight.shape[1], begin)

    def encode(self, name: str, weight: torch.Tensor, state: Any, budget: Budget) -> torch.Tensor:
        """See `StoringAdapter.encode`."""
        prepared, rounded = state
        if prepared != budget:
            raise InputError(f"{self.card.id} was prepared at {prepared.label}", "prepare it at each budget")
        found: torch.Tensor = rounded[name].to(weight.device)
        return found
