"""Neurons that are chosen once for each sequence, from its prompt, and serve all tokens that it decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sparsebench.adapters.activation.base import ActivationAdapter, ActivationState, Site

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.activation._sequences import PromptMasking
    from sparsebench.systems.causal_lm import CausalLM


class PromptActivation(ActivationAdapter):
    """An activation method that ranks the neurons of a sequence by its prompt, which stays dense.

    `score` says what each neuron is worth to each token of the prompt; the sums over the prompt rank them. A prompt
    may come in parts. The neurons that are left out are known before they are computed: a whole neuron is saved. A
    sequence without a prompt stays dense.
    """

    rule: Literal["topk"] = "topk"
    scope: Literal["decode"] = "decode"

    def sites(self, system: CausalLM) -> list[Site]:
        """The inputs of the MLPs' down projections."""
        from sparsebench.adapters.activation._mlp import required_mlps

        return [
            Site(mlp.down.name, mlp.down.module, mlp.down.weight.detach(), mlp.neurons, mlp.whole, mlp.down.block)
            for mlp in required_mlps(system, self.card.id)
        ]

    def columns(self, system: CausalLM) -> dict[str, Any]:
        """None: what stays of an MLP is gathered for each prompt."""
        return {}

    def worth(self, sums: torch.Tensor, state: Any) -> torch.Tensor:
        """What each neuron is worth to a sequence, float32 [channels], from the sums over its prompt."""
        return sums

    def masking(
        self, system: CausalLM, sites: list[Site], levels: dict[str, float], state: ActivationState
    ) -> PromptMasking:
        """See `ActivationAdapter.masking`."""
        from sparsebench.adapters.activation._sequences import PromptMasking

        return PromptMasking(self, system, sites, levels, state)
