"""CHESS: a threshold for each neuron, and sparse inputs where attention bears them best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.activation.base import ActivationAdapter, Rule, Scope, Site, hooked
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM


class Chess(ActivationAdapter):
    """A neuron's activation times the usual size of what multiplies it is what it is worth (sections 3.2 and 3.3)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="chess",
        family="activation",
        title="CHESS",
        summary="Neurons of an MLP become zero where their activation function is at most a threshold of their own, "
        "and inputs of the query and output projections where they are at most a calibrated quantile.",
        paper=Paper(
            title="CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective Sparsification",
            authors="Junhui He and Shangyu Wu and Weidong Wen and Chun Jason Xue and Qingan Li",
            year=2024,
            venue="Conference on Empirical Methods in Natural Language Processing",
            url="https://arxiv.org/abs/2409.01366",
            key="he2024chess",
        ),
        unit="channel",
        adaptivity="threshold",
        training="calibration",
        modes=("simulated", "executed"),
        nearest="cats",
        differs="weighs each neuron by the usual size of what the gate multiplies, and sparsifies attention too",
        deviations=(
            "what multiplies a neuron is read off as the ratio of what the down projection is fed to the activation, "
            "over the tokens where the latter is not zero",
            "where one matrix gives queries, keys and values, of attention only the output projection is sparse",
            "in an MLP without a gate all neurons have one threshold",
            "the calibration text is the suite's",
        ),
    )

    rule: Rule = "threshold"
    scope: Scope = "all"
    attention: Literal["selective", "dense"] = "selective"
    """`selective`: inputs of the query and the output projection are sparse too; `dense`: MLPs alone."""
    moment: Literal["mean", "square"] = "mean"
    """The usual size of what multiplies a neuron: the mean of its absolute value, as in the paper, or the root of its
    mean square, as in the released code."""

    def sites(self, system: CausalLM) -> list[Site]:
        """The activation functions of the MLPs, and the inputs of query and output projections."""
        from sparsebench.adapters.activation._attention import attentions
        from sparsebench.adapters.activation._mlp import required_mlps

        found = [
            Site(m.name, m.activation, None, m.neurons, m.down.weight.shape[0] + m.gated, m.down.block, True)
            for m in required_mlps(system, self.card.id)
        ]
        if self.attention == "selective":
            linears = [site for own in attentions(system) for site in (own.query, own.output) if site is not None]
            found += [
                Site(s.name, s.module, s.weight.detach(), s.weight.shape[1], s.weight.shape[0], s.block)
                for s in linears
            ]
        return found

    def learns(self) -> bool:
        """The usual sizes come from a text."""
        return True

    def learn(self, system: CausalLM, calibration: Calibration) -> dict[str, Any]:
        """For each gated MLP the usual size of what multiplies each neuron, float32 [channels].

        Raises:
            InputError: What looks like an MLP is none.
        """
        import torch

        from sparsebench.adapters.activation._mlp import mlps
        from sparsebench.adapters.passes import read

        gated = {mlp.down.name: mlp for mlp in mlps(system) if mlp.gated}
        gates = [Site(m.name, m.activation, None, m.neurons, 0, m.down.block, True) for m in gated.values()]
        fed = [Site(m.down.name, m.down.module, None, m.neurons, 0, m.down.block) for m in gated.values()]
        activations: dict[str, torch.Tensor] = {}
        sums = {
            m.name: torch.zeros(2, m.neurons, dtype=torch.float64, device=m.down.weight.device) for m in gated.values()
        }

        def see(site: Site, x: torch.Tensor) -> None:
            flat = x.reshape(-1, x.shape[-1]).float()
            if site.output:
                activations[site.name] = flat
                return
            name = gated[site.name].name
            if name not in activations or activations[name].shape != flat.shape:
                raise InputError(f"{name} does not feed {site.name}: it is no place for {self.card.id}")
            gate = activations.pop(name)
            size = torch.where(gate == 0, 0, flat / gate).abs()
            sums[name][0] += (size if self.moment == "mean" else size.square()).double().sum(dim=0)
            sums[name][1] += (gate != 0).double().sum(dim=0)

        with hooked(gates, see), hooked(fed, see):
            read(system, calibration)
        usual = {name: total / count.clamp(min=1) for name, (total, count) in sums.items()}
        return {name: (u if self.moment == "mean" else u.sqrt()).float() for name, u in usual.items()}

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.abs() if state is None else x.float().abs() * state
