"""WINA: activations times the norm of the weights that they meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.activation.base import SHARES, ActivationState, AllocatedActivation, Rule, Scope, Site
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import BYTES, PhaseCosts, Request

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.activation._masking import Masking
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.systems.causal_lm import CausalLM

RELEASED = ("k_proj", "qkv_proj", "gate_proj", "gate_up_proj")
"""Layers whose norms the released code reads; for all others it takes 1."""


class Wina(AllocatedActivation):
    """|x_j| times the 2-norm of column j of the weight is what a channel is worth (section 3.1)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="wina",
        family="activation",
        title="WINA",
        summary="Of the inputs of each linear layer those with the smallest |x| ||W|| become zero, equally many of a "
        "token.",
        paper=Paper(
            title="WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
            authors="Sihan Chen and Dan Zhao and Jongwoo Ko and Colby Banbury and Huiping Zhuang and Luming Liang and "
            "Tianyi Chen",
            year=2025,
            venue="arXiv:2505.19427",
            url="https://arxiv.org/abs/2505.19427",
            key="chen2025wina",
        ),
        unit="channel",
        modes=("simulated", "executed"),
        nearest="teal",
        differs="weighs each channel by the norm of its column, so that layers with one input keep different channels",
        deviations=(
            "transform: inputs are turned where they are read, for keys and gates, and not in the residual stream; the "
            "work is the same as that of the released code's turned shortcuts, and counts as done",
            "transform is off unless asked for",
            "unless allocation is greedy, all layers have the same target; the paper searches as TEAL does",
        ),
    )

    rule: Rule = "topk"
    scope: Scope = "last-99"
    norms: Literal["all", "released"] = "all"
    """Layers whose norms are read: all, as the paper says, or those of keys and gates, as in the released code."""
    transform: bool = False
    """Whether the inputs of attention and MLPs are turned so that the columns of keys and gates are orthogonal, which
    the paper's bound supposes; what the dense model says stays the same up to rounding."""

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """See `AllocatedActivation.prepare`; of the turned model where `transform`."""
        with self._turned(system):
            return super().prepare(system, calibration, budget)

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """See `ActivationAdapter.attach`; at no sparsity nothing is turned."""
        sparse = budget is not None and budget.number > 0
        with self._turned(system) if sparse else nullcontext(), super().attach(system, prepared, budget) as attached:
            yield attached

    def masking(self, system: CausalLM, sites: list[Site], levels: dict[str, float], state: ActivationState) -> Masking:
        """See `ActivationAdapter.masking`; turning is work of its own."""
        masking = super().masking(system, sites, levels, state)
        if self.transform and any(levels.values()):
            from sparsebench.adapters.activation._rotation import groups

            masking.work = {group.layers[0].name: group.work for group in groups(system)}
        return masking

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """See `ActivationAdapter.cost`; with what turning takes."""
        found = super().cost(system, request, budget)
        if not self.transform or budget is None or budget.number == 0:
            return found
        from sparsebench.adapters.activation._rotation import groups

        work = sum(group.work for group in groups(system))
        prefill, decode = (2 * work * request.batch * share for share in SHARES[self.scope])
        read = work * BYTES * request.answer * (SHARES[self.scope][1] > 0)
        return PhaseCosts(
            prefill=replace(found.prefill, linear=found.prefill.linear + prefill * request.prompt),
            decode=replace(
                found.decode,
                linear=found.decode.linear + decode * request.answer,
                bytes_weights=found.decode.bytes_weights + read,
            ),
        )

    def _turned(self, system: CausalLM) -> AbstractContextManager[None]:
        from sparsebench.adapters.activation._rotation import rotated

        return rotated(system) if self.transform else nullcontext()

    def state_of(self, site: Site) -> torch.Tensor | None:
        """Norms of the columns, float32 [channels]."""
        if site.weight is None or (self.norms == "released" and site.name.rsplit(".", 1)[-1] not in RELEASED):
            return None
        norms: torch.Tensor = site.weight.float().norm(dim=0)
        return norms

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.float().abs() if state is None else (x.float() * state).abs_()
