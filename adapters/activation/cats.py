"""CATS: neurons whose gate is small are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.activation.base import ActivationAdapter, Rule, Scope, Site
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

    from sparsebench.systems.causal_lm import CausalLM


class Cats(ActivationAdapter):
    """The absolute value of a neuron's activation function is what it is worth (section 4.1)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="cats",
        family="activation",
        title="CATS",
        summary="Neurons of an MLP whose activation function gives at most a calibrated quantile become zero; "
        "attention stays dense.",
        paper=Paper(
            title="CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
            authors="Donghyun Lee and Je-Yong Lee and Genghan Zhang and Mo Tiwari and Azalia Mirhoseini",
            year=2024,
            venue="Conference on Language Modeling",
            url="https://arxiv.org/abs/2404.08763",
            key="lee2024cats",
        ),
        unit="neuron",
        adaptivity="threshold",
        training="calibration",
        modes=("simulated", "executed"),
        nearest="top-k-mlp",
        differs="looks at the gate alone, before the up projection, which it therefore spares, and cuts at a threshold",
        deviations=(
            "the target is that of the up and down projections; the paper's is the same, of MLPs alone",
            "the calibration text is the suite's",
        ),
    )

    rule: Rule = "threshold"
    scope: Scope = "all"

    def sites(self, system: CausalLM) -> list[Site]:
        """The activation functions of the MLPs; a neuron saves a column of the down and a row of the up projection.

        Raises:
            InputError: No MLP has an activation function that is a module.
        """
        from sparsebench.adapters.activation._mlp import required_mlps

        found = required_mlps(system, self.card.id)
        return [
            Site(
                mlp.name, mlp.activation, None, mlp.neurons, mlp.down.weight.shape[0] + mlp.gated, mlp.down.block, True
            )
            for mlp in found
        ]

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.abs()
