"""WeLore: matrices whose singular values fall fast become factors, the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning._storing import StoringAdapter
from sparsebench.budget import Budget

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM, LinearSite
    from sparsebench.systems.weights import Stored


class WeLore(StoringAdapter):
    """One threshold on the normalised singular values of all matrices decides their ranks."""

    card: ClassVar[MethodCard] = MethodCard(
        id="welore",
        version=2,
        family="pruning",
        title="WeLore",
        summary="Singular values below one threshold, each matrix's scaled to 0 to 1, go; a matrix that loses at "
        "least half of its rank is stored as two factors, any other stays dense.",
        paper=Paper(
            title="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
            authors="Ajay Jaiswal and Lu Yin and Zhenyu Zhang and Shiwei Liu and Jiawei Zhao and Yuandong Tian and "
            "Zhangyang Wang",
            year=2024,
            venue="arXiv:2407.11239",
            url="https://arxiv.org/abs/2407.11239",
            key="jaiswal2024welore",
        ),
        unit="rank",
        adaptivity="static",
        budgets=("sparsity",),
        nearest="magnitude",
        differs="leaves out directions of a whole matrix instead of single weights",
        deviations=(
            "the threshold is searched for so that the share of weights saved is the budget, not the share of ranks; "
            "what it saves beyond is given back to the factorised matrices, largest singular values first, until all "
            "have the rank of the cut",
            "without the paper's fine-tuning of the factors",
        ),
    )

    cut: float = Field(0.5, gt=0, le=1)
    """A matrix is factorised when it keeps at most this share of its rank, and factors take less than it does; no
    factorised matrix keeps more."""

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Singular values of all matrices, shared by all budgets; no text is read."""
        import torch

        from sparsebench.systems.weights import prunable

        return Prepared({site.name: torch.linalg.svdvals(self.finite(site)).cpu() for site in prunable(system)})

    def encoded(
        self, sites: Sequence[LinearSite], state: Any, budget: Budget
    ) -> Iterator[tuple[LinearSite, torch.Tensor, Stored]]:
        """See `StoringAdapter.encoded`; matrices that keep their rank are left out."""
        from sparsebench.adapters.pruning._ranks import Matrix, ranks
        from sparsebench.systems.weights import Stored

        matrices = [Matrix(site.weight.shape[0], site.weight.shape[1], state[site.name]) for site in sites]
        for site, matrix, rank in zip(sites, matrices, ranks(matrices, budget.number, self.cut), strict=True):
            if rank is not None:
                kept = matrix.factored(rank)
                decoded = truncated(site.weight.detach().float(), rank)
                yield site, decoded, Stored(site.weight.numel(), kept, {"factors": 16.0 * kept})

    def stored(self, rows: int, columns: int, budget: Budget) -> Stored:
        """What a matrix takes on average, before its rank is known: the budget's share of its size."""
        from sparsebench.systems.weights import Stored

        kept = round((1 - budget.number) * rows * columns)
        return Stored(rows * columns, kept, {"factors": 16.0 * kept})


def truncated(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of that rank, its factors rounded to 16 bits as they would be stored, float32 [out, in]."""
    import torch

    from sparsebench.adapters.pruning._quantise import half

    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return half(left[:, :rank] * root) @ half(root[:, None] * right[:rank])
