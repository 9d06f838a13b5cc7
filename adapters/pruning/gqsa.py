"""GQSA in its one-shot form: groups of weights go, and those that stay are rounded to four bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning._storing import StoringAdapter
from sparsebench.budget import Budget
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.weights import Stored


class GQSA(StoringAdapter):
    """In each row the groups of inputs go whose weights matter least to the output; the rest is quantised by group."""

    card: ClassVar[MethodCard] = MethodCard(
        id="gqsa",
        family="pruning",
        title="GQSA (one shot)",
        summary="Of each row's groups of 16 inputs those of the least mean saliency go; the weights of the others are "
        "rounded to 4 bits with a scale and a zero point for each group.",
        paper=Paper(
            title="GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference",
            authors="Chao Zeng and Songwei Liu and Shu Yang and Fangmin Chen and Xing Mei and Lean Fu",
            year=2024,
            venue="arXiv:2412.17560",
            url="https://arxiv.org/abs/2412.17560",
            key="zeng2024gqsa",
        ),
        unit="group",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        nearest="sparsegpt",
        differs="leaves out whole groups of one row, mends nothing, and rounds what it keeps",
        deviations=(
            "rows lose equally many groups, save for one more in some of them where the budget is between two numbers",
            "one shot: neither of the paper's two stages of training is run",
            "a weight's saliency is its square over the diagonal of the inverse Hessian, as in SparseGPT",
            "at a sparsity of 0 nothing is quantised",
            "saliencies are of the dense model's inputs, which the suite's calibration text gives",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    group: int = Field(16, ge=1)
    """Consecutive inputs of a row that stay or go together, and share a scale."""
    bits: int = Field(4, ge=2, le=8)
    """Bits of a code."""

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """What each input is worth, shared by all budgets: the inverse of the diagonal of the inverse of X X^T."""
        from sparsebench.adapters.passes import dense_statistics, unreached
        from sparsebench.adapters.pruning._obs import inverse_factor

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        worth: dict[str, torch.Tensor] = {}
        statistics = dense_statistics(system, calibration, gram=True)
        facts = {"calibration": calibration.describe(), **unreached(statistics)}
        while statistics:
            name, inputs = statistics.popitem()
            if inputs.gram is not None:
                worth[name] = 1 / inverse_factor(inputs.gram).square().sum(dim=0)
        return Prepared(worth, facts, tokens=calibration.tokens)

    def encode(self, name: str, weight: torch.Tensor, state: Any, budget: Budget) -> torch.Tensor:
        """See `StoringAdapter.encode`."""
        from sparsebench.adapters.pruning._quantise import on_grid

        gone = self.gone(weight.square() * state[name].to(weight.device), budget.number)
        return on_grid(weight, self.bits, self.group, symmetric=False).masked_fill(gone, 0)

    def gone(self, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
        """Which weights go, bool [out, in]; columns after the last whole group stay."""
        import torch

        from sparsebench.adapters.selection import smallest

        rows, columns = saliency.shape
        whole = columns // self.group * self.group
        mean = saliency[:, :whole].reshape(rows, -1, self.group).mean(dim=2)
        each, more = divmod(self._groups_gone(rows, columns, sparsity), rows)
        chosen = smallest(mean, each)
        if more:  # the budget is no whole number of groups a row: the least of those that would go next, by matrix
            following = smallest(mean, each + 1) & ~chosen
            least = smallest(mean.masked_fill(~following, torch.inf).amin(dim=1)[None], more)[0]
            chosen |= following & least[:, None]
        return torch.nn.functional.pad(chosen.repeat_interleave(self.group, dim=1), (0, columns - whole))

    def _groups_gone(self, rows: int, columns: int, sparsity: float) -> int:
        """Groups of a matrix that go."""
        return min(int(sparsity * rows * columns / self.group + 0.5), rows * (columns // self.group))

    def stored(self, rows: int, columns: int, budget: Budget) -> Stored:
        """Of the groups that stay: codes, scales, zero points, places; and where each row begins."""
        from sparsebench.systems.weights import Stored

        gone = self._groups_gone(rows, columns, budget.number)
        groups = rows * -(-columns // self.group) - gone
        kept = rows * columns - gone * self.group
        parts = {
            "codes": kept * self.bits,
            "scales": 16 * groups,
            "zero points": self.bits * groups,
            "group places": 16 * groups,
            "rows": 32 * (rows + 1),
        }
        return Stored(rows * columns, kept, {name: float(bits) for name, bits in parts.items()})
