"""Top-k MLP: of each token the largest neurons stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.adapters.activation.base import ActivationAdapter, Rule, Scope, Site
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

    from sparsebench.systems.causal_lm import CausalLM


class TopKMlp(ActivationAdapter):
    """The absolute value of a neuron, as the down projection reads it, is what it is worth."""

    card: ClassVar[MethodCard] = MethodCard(
        id="top-k-mlp",
        family="activation",
        title="Top-k MLP",
        summary="Of the neurons of an MLP the smallest become zero, equally many of each token; attention stays dense.",
        paper=Paper(
            title="The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers",
            authors="Zonglin Li and Chong You and Srinadh Bhojanapalli and Daliang Li and Ankit Singh Rawat and "
            "Sashank J. Reddi and Ke Ye and Felix Chern and Felix Yu and Ruiqi Guo and Sanjiv Kumar",
            year=2023,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2210.06313",
            key="li2023lazy",
        ),
        unit="neuron",
        modes=("simulated", "executed"),
        nearest="cats",
        differs="looks at the neuron after gate and up projection, so that only the down projection is spared",
        deviations=(
            "the paper trains with it; here it is put on a trained model",
            "in a gated MLP a neuron is the product of gate and up projection",
            "neurons are ranked by their size, negative ones too",
        ),
    )

    rule: Rule = "topk"
    scope: Scope = "all"

    def sites(self, system: CausalLM) -> list[Site]:
        """The inputs of the MLPs' down projections.

        Raises:
            InputError: No MLP has an activation function that is a module.
        """
        from sparsebench.adapters.activation._mlp import required_mlps

        found = [mlp.down for mlp in required_mlps(system, self.card.id)]
        return [
            Site(down.name, down.module, down.weight.detach(), down.weight.shape[1], down.weight.shape[0], down.block)
            for down in found
        ]

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.abs()
