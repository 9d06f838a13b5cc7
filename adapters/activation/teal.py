"""TEAL: small activations go, by a threshold for each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.activation.base import AllocatedActivation, Rule, Scope
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch


class Teal(AllocatedActivation):
    """The absolute value of an activation is what it is worth."""

    card: ClassVar[MethodCard] = MethodCard(
        id="teal",
        family="activation",
        title="TEAL",
        summary="Inputs of all linear layers become zero where their absolute value is at most a calibrated quantile "
        "of their site.",
        paper=Paper(
            title="Training-Free Activation Sparsity in Large Language Models",
            authors="James Liu and Pragaash Ponnusamy and Tianle Cai and Han Guo and Yoon Kim and Ben Athiwaratkun",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2408.14690",
            key="liu2025teal",
        ),
        unit="channel",
        adaptivity="threshold",
        training="calibration",
        modes=("simulated", "executed"),
        nearest="wina",
        differs="leaves out the norm of the weights that a channel meets, and cuts at a threshold",
        deviations=(
            "unless allocation is greedy, all sites have the same target",
            "quantiles of |x| itself, where the released code takes those of x and supposes symmetry",
            "the last step of a greedy search is shortened, so that the target is met, up to 98 %",
            "the calibration text is the suite's",
        ),
    )
    shared: ClassVar[bool] = True

    rule: Rule = "threshold"
    scope: Scope = "last-half"

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.abs()
