"""MoA: a span for each head, from what its attention outside the span means to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, PhaseKnob
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView

STEPS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Densities that a head may have, as multiples of the budget's."""


class MoA(AttentionAdapter):
    """First and recent keys, as many for each head as an integer programme over influences gives it."""

    card: ClassVar[MethodCard] = MethodCard(
        id="moa",
        family="attention",
        title="MoA",
        summary="Every query reads first and recent keys; how many is each head's own, chosen offline so that what is "
        "left out influences the loss least.",
        paper=Paper(
            title="MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression",
            authors="Tianyu Fu and Haofeng Huang and Xuefei Ning and Genghan Zhang and Boju Chen and others",
            year=2024,
            venue="arXiv:2406.14909",
            url="https://arxiv.org/abs/2406.14909",
            key="fu2024moa",
        ),
        unit="head",
        adaptivity="static",
        budgets=("sparsity",),
        modes=("simulated", "executed"),
        training="gradient",
        prepare_depends_on_budget=True,
        nearest="streaming-llm",
        differs="gives each head a window of its own",
        deviations=(
            "the loss is that of a calibration text; the paper's is that of the dense model's own answers",
            "influence is that of all that a span leaves out at once, the others renormalised, in absolute value for "
            "each query; the paper adds up the influence of single weights",
            "one length is profiled, and a head's span is a share of what there is; the paper fits two numbers a head "
            "to several lengths",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    phase: PhaseKnob = "both"
    sinks: int = Field(64, ge=0)
    """First keys that every query reads, where a budget has room: at most a quarter of it."""
    samples: int = Field(8, ge=1)
    """Sequences of the calibration text that are profiled."""
    length: int = Field(512, ge=2)
    """Tokens of each that are profiled."""

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The density of each head as a multiple of the budget's, float64 [heads], by layer."""
        from sparsebench.adapters.attention._spans import influences, plan

        if calibration is None or budget is None:
            raise InputError("moa reads a calibration text at a budget", "name one in the suite: calibration: ...")
        ids = calibration.ids[: self.samples, : self.length]
        density = 1 - budget.number
        steps = [step for step in STEPS if step * density <= 1] or [1.0]
        found = influences(system, ids, [step * density for step in steps], self.sinks)
        chosen = plan(found, steps)
        state = {layer: [steps[i] for i in which.tolist()] for layer, which in chosen.items()}
        facts = {"multiples": {str(layer): multiples for layer, multiples in state.items()}}
        return Prepared(state=state, facts=facts, tokens=int(ids.size))

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        import torch

        from sparsebench.adapters.attention._allowance import Allowance as Share
        from sparsebench.adapters.attention._spans import span
        from sparsebench.adapters.attention.minference import ByHead

        multiples: list[float] = prepared.state[view.layer]
        density = 1.0 if allowance.density is None else allowance.density
        kinds = sorted(set(multiples))
        shares = [1.0 if density >= 1 else min(1.0, kind * density) for kind in kinds]
        which = torch.tensor([kinds.index(multiple) for multiple in multiples], device=view.query.device)
        return ByHead([span(view, Share(density=share), self.sinks) for share in shares], which)
