"""Random layer ratios, one draw a seed, with the error that each layer's pruning makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.pruning.base import Allotment, CalibratedPruning, Layer, PruningState

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


class RandomAllocation(CalibratedPruning):
    """Wanda at sparsities of layers that are drawn at random: what a rule for layer ratios must be able to rank."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-allocation",
        family="pruning",
        title="Random allocation",
        summary="Wanda with a random sparsity for each layer, their mean being the target; the layers' output errors "
        "on the calibration text are recorded.",
        role="control",
        unit="weight",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="random-search",
        differs="takes the one allocation that it draws, and looks for no better one",
    )

    ratios: Literal["uniform"] = "uniform"
    stats_pass: Literal["dense"] = "dense"
    step: float = Field(0.05, gt=0, lt=1)
    """Sparsity between neighbouring levels."""
    switches: int = Field(200, ge=0)
    """How often a layer goes up a level and another of equal size down."""
    seed: int = 0

    def reads_gram(self) -> bool:
        """See `CalibratedPruning.reads_gram`; a layer's error is measured with it."""
        return True

    def prepare_depends_on_budget(self) -> bool:
        """Layer errors are those of a budget."""
        return True

    def score(self, layer: Layer) -> torch.Tensor:
        """Wanda's."""
        return layer.weight.abs() * layer.inputs.norm

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The statistics, and as facts the layers' errors: their sum is `layer_error`."""
        from sparsebench.systems.weights import prunable

        prepared = super().prepare(system, calibration, budget)
        state: PruningState = prepared.state
        sites = prunable(system)
        if budget is None or budget.number == 0 or state.statistics is None:
            return prepared
        allotments = self.allotments(sites, budget, state)
        errors = [self._error(self.layer(site, state.statistics), allotments[site.name]) for site in sites]
        facts: dict[str, Any] = {
            "layer_error": sum(errors),
            "layer_errors": [round(error, 6) for error in errors],
            "layer_sparsities": [round(allotments[site.name].sparsity, 4) for site in sites],
        }
        prepared.facts |= facts
        return prepared

    def _error(self, layer: Layer, allotment: Allotment) -> float:
        """||(W - W') X||^2 over ||W X||^2, with X X^T of the calibration text."""
        import torch

        gram = layer.inputs.gram
        if gram is None or allotment.sparsity == 0:
            return 0.0
        gone = torch.where(self.mask(layer, allotment), layer.weight, 0)

        def energy(weight: torch.Tensor) -> float:
            return float(((weight @ gram) * weight).sum(dtype=torch.float64))

        return energy(gone) / max(energy(layer.weight), 1e-30)

    def _ratios(self, sites: list[LinearSite], sparsity: float, state: PruningState) -> list[float]:
        """A draw of levels whose mean, weighted by size, is the target."""
        import numpy as np

        from sparsebench.adapters.pruning._search import Space
        from sparsebench.identity import seed_of

        space = Space.of([site.weight.numel() for site in sites], sparsity, self.step)
        generator = np.random.default_rng(seed_of("random allocation", self.seed))
        levels = space.switched((0,) * len(sites), self.switches, generator)
        return [sparsity + self.step * level for level in levels]
