"""ECoFLaP: blocks that change the loss more are pruned less, by forward passes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.wanda import Wanda

if TYPE_CHECKING:
    from sparsebench.adapters.pruning._allocation import Settings


class ECoFLaP(Wanda):
    """Coarse: sparsities of blocks from zeroth-order gradients; fine: Wanda inside each layer."""

    card: ClassVar[MethodCard] = MethodCard(
        id="ecoflap",
        version=2,
        family="pruning",
        title="ECoFLaP",
        summary="Blocks get their sparsity by how much the loss changes when their weights are perturbed; in each "
        "output row the weights with the smallest |W| ||X|| go.",
        paper=Paper(
            title="ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
            authors="Yi-Lin Sung and Jaehong Yoon and Mohit Bansal",
            year=2024,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2310.02998",
            key="sung2024ecoflap",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="wanda",
        differs="blocks have sparsities of their own",
        deviations=(
            "of a vision-language model there is the language model alone",
            "the matrices of a block are perturbed together, where the released code perturbs one after the other",
        ),
    )

    ratios: Literal["ecoflap"] = "ecoflap"
    sequences: int = Field(32, ge=1)
    """Most calibration sequences that are perturbed; each costs two forward passes for every block."""
    noise: float = Field(1e-3, gt=0)
    """Standard deviation of a perturbation."""
    slack: float = Field(0.1, ge=0)
    """How far above the target the sparsity of a block may rise."""
    seed: int = 0

    def settings(self) -> Settings:
        """See `PruningAdapter.settings`."""
        from sparsebench.adapters.pruning._allocation import Settings

        return Settings(seed=self.seed, noise=self.noise, sequences=self.sequences, slack=self.slack)
