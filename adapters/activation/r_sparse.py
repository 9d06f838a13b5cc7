"""R-Sparse: large inputs meet the weight, small ones its largest singular components."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.activation.base import ActivationAdapter, ActivationState, Rule, Scope, Site
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.activation._low_rank import LowRankMasking
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.systems.causal_lm import CausalLM


class RSparse(ActivationAdapter):
    """y = W (x m) + U_r S_r V_r^T (x (1 - m)), m being 1 where |x_j| ||W_j|| is large (section 4)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="r-sparse",
        family="activation",
        title="R-Sparse",
        summary="Inputs of all linear layers with a small |x| ||W|| meet the largest singular components of the weight "
        "in the place of the weight; channels and components share the budget.",
        paper=Paper(
            title="R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference",
            authors="Zhenyu Zhang and Zechun Liu and Yuandong Tian and Harshit Khaitan and Zhangyang Wang and Steven "
            "Li",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2504.19449",
            key="zhang2025rsparse",
        ),
        unit="channel",
        adaptivity="threshold",
        training="calibration",
        modes=("simulated", "executed"),
        nearest="wina",
        differs="gives part of the budget to singular components, through which what was left out passes",
        deviations=(
            "all layers have one sparsity and one share of channels; the paper searches both for each layer by "
            "evolution",
            "the multiply-adds of the singular components count as done",
            "the share of channels is .9 everywhere: the searches that were released found .96 on average",
            "the calibration text is the suite's",
        ),
    )

    rule: Rule = "threshold"
    scope: Scope = "last-half"
    channel_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the budget that goes to channels (alpha in the released code); the others go to singular components."""

    def state_of(self, site: Site) -> torch.Tensor | None:
        """Norms of the columns, float32 [channels]; none where there are no components, as in the released code."""
        if self.channel_share == 1 or site.weight is None:
            return None
        norms: torch.Tensor = site.weight.float().norm(dim=0)
        return norms

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """See `ActivationAdapter.score`."""
        return x.abs() if state is None else (x.float() * state).abs_()

    def rank(self, site: Site, sparsity: float) -> int:
        """Singular components at a site: as many as what channels leave of the budget pays for."""
        budget = (1 - sparsity) * site.channels * site.saved
        return int(budget * (1 - self.channel_share) / (site.channels + site.saved))

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Thresholds, and the factors of each weight: as many as any budget asks for."""
        from sparsebench.adapters.activation._low_rank import LowRankState, factors_of

        prepared = super().prepare(system, calibration, budget)
        state: ActivationState = prepared.state
        factors = {
            site.name: factors_of(site.weight, self.rank(site, 0.0))
            for site in self.sites(system)
            if site.weight is not None
        }
        return replace(prepared, state=LowRankState(state.distributions, columns=state.columns, factors=factors))

    def masking(
        self, system: CausalLM, sites: list[Site], levels: dict[str, float], state: ActivationState
    ) -> LowRankMasking:
        """Fewer channels than the budget, by what the components take; at no sparsity neither."""
        from sparsebench.adapters.activation._low_rank import LowRankMasking, LowRankState

        if not isinstance(state, LowRankState):
            raise InputError(f"{self.card.id} is attached with what prepare left")
        fewer = {name: 1 - (1 - level) * self.channel_share if level else 0.0 for name, level in levels.items()}
        ranks = {site.name: self.rank(site, levels[site.name]) if levels[site.name] else 0 for site in sites}
        return LowRankMasking(self, system, sites, fewer, state, ranks)
