"""The pruning family: a method says what each weight is worth; everything else is here.

A method is a card, its knobs and `score`; one that does more than keep the highest scores writes `mask`, and one that
changes the weights it keeps writes `update`. The base class finds the layers, runs the calibration, compares scores in
groups, counts exactly, and puts the original weights back. Pruned are the linear layers of the decoder blocks, and the
projections of experts like them: each expert is fed the tokens that are routed to it. One that no token of the
calibration text reaches has the statistics of independent inputs of one size, so that its largest weights stay.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.budget import Budget, parse_pattern
from sparsebench.cost import PhaseCosts, Request, active_share
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.adapters.passes import InputStatistics, Statistics
    from sparsebench.adapters.pruning._allocation import Measured, Settings
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

CompareGroup = Literal["row", "layer", "block", "global"]
"""Weights that compete: those of one output (`row`), of one matrix, of 128 columns of it (`block`), of all matrices. In
a pattern n:m the m consecutive weights compete, whatever this says."""
LayerRatios = Literal["uniform", "er", "erk", "owl", "ecoflap", "evopress", "random-search"]
"""`uniform`: each layer has the target; `er`, `erk`: by shape, which for matrices is one rule with two names; `owl`:
blocks with more outliers in Wanda's score less; `ecoflap`: blocks that change the loss more less; `evopress`: by
evolutionary search for the least divergence from the dense model; `random-search`: by as many random draws."""
SEARCHED = ("evopress", "random-search")
"""Ratios that belong to one budget."""


@dataclass(frozen=True)
class Allotment:
    """How many weights of a layer go, and which compete; `pattern` is (n, m) for n zeros in m."""

    sparsity: float
    group: CompareGroup = "row"
    pattern: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layer:
    """A layer as methods see it.

    Attributes:
        name: Its name in the model.
        weight: float32 [out, in], a copy.
        statistics: Of what it was fed in calibration; None where the method reads none.
    """

    name: str
    weight: torch.Tensor
    statistics: InputStatistics | None = None

    @property
    def inputs(self) -> InputStatistics:
        """Its statistics.

        Raises:
            InputError: The method was prepared without a text.
        """
        if self.statistics is None:
            raise InputError(f"{self.name} has no calibration statistics", "prepare the method with a calibration text")
        return self.statistics


@dataclass
class PruningState:
    """What `prepare` leaves.

    Attributes:
        statistics: Of the dense model's inputs, by layer.
        measured: What layer ratios are decided by.
        results: Of a block-by-block pass, by layer: a packed mask, or the new weight.
        budget: The budget of that pass.
    """

    statistics: Statistics | None = None
    measured: Measured | None = None
    results: dict[str, Any] = field(default_factory=dict)
    budget: Budget | None = None


class PruningAdapter(Adapter):
    """One pruning method that reads no text. Subclasses set `card` and write `score`."""

    moves_weights: ClassVar[bool] = False
    """Whether kept weights change too, which `update` then does."""

    compare_group: CompareGroup = "row"
    ratios: LayerRatios = "uniform"

    @abstractmethod
    def score(self, layer: Layer) -> torch.Tensor:
        """What each weight is worth, float32 [out, in]; in each group the lowest go."""

    def mask(self, layer: Layer, allotment: Allotment) -> torch.Tensor:
        """Which weights go, bool [out, in]."""
        from sparsebench.adapters.pruning import _groups

        return _groups.mask(self.checked_score(layer), allotment)

    def update(self, layer: Layer, allotment: Allotment) -> torch.Tensor:
        """The new weight, float32 [out, in]; asked for where `moves_weights`."""
        return layer.weight.masked_fill(self.mask(layer, allotment), 0)

    def checked_score(self, layer: Layer) -> torch.Tensor:
        """`score`, or an error that names the layer.

        Raises:
            InputError: There is not one for each weight, or one is no finite number.
        """
        score = self.score(layer)
        self._check_form("score", score, layer)
        if not bool(score.isfinite().all()):
            raise InputError(f"{self.card.id}: {layer.name} has weights or inputs that are not finite")
        return score

    def _check_form(self, hook: str, given: torch.Tensor, layer: Layer) -> None:
        if given.shape != layer.weight.shape:
            raise InputError(
                f"{self.card.id}: `{hook}` gives {list(given.shape)} for {layer.name}, "
                f"not [out, in] = {list(layer.weight.shape)}",
                "one number for each entry of `layer.weight`, in its place",
            )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.compare_group == "global" and self.ratios != "uniform":
            raise ValueError("compare_group 'global' makes its own layer ratios: ratios must be 'uniform'")
        if self.ratios not in ("uniform", "er", "erk") and not self.needs_calibration:
            raise ValueError(f"{self.ratios!r} reads a calibration text, which this method does not")
        return self

    def check_budget(self, budget: Budget | None) -> None:
        """Whether this method takes that budget with these knobs.

        Raises:
            InputError: It does not.
        """
        super().check_budget(budget)
        if budget is not None and budget.kind == "pattern" and self.ratios != "uniform":
            raise InputError(f"{self.card.id}: a pattern prunes all layers alike", "leave out the knob 'ratios'")

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The pruned model; on exit each parameter has its original memory again."""
        from sparsebench.adapters.pruning._storing import refuse_stored
        from sparsebench.systems.weights import prunable, put, restoring

        self.check_budget(budget)
        refuse_stored(self.card.id, system)
        state: PruningState = prepared.state or PruningState()
        if state.budget is not None and state.budget != budget:
            raise InputError(f"{self.card.id} was prepared at {state.budget.label}", "prepare it at each budget")
        sites = prunable(system)
        with restoring(sites):
            for site, weight in self._pruned(system, sites, state, budget or Budget("sparsity", 0.0)):
                put(site, weight)
            yield system

    def _pruned(
        self, system: CausalLM, sites: list[LinearSite], state: PruningState, budget: Budget
    ) -> Iterator[tuple[LinearSite, torch.Tensor]]:
        """New weights, layer by layer; layers that stay as they are are left out."""
        if budget.number == 0:
            return
        if self.compare_group == "global" and budget.kind == "sparsity":
            yield from self._pruned_globally(sites, state, budget)
            return
        allotments = self.allotments(sites, budget, state)
        for site in sites:
            if allotments[site.name].sparsity == 0:
                continue
            if site.name in state.results:
                yield site, self.applied(site, state.results[site.name])
            else:
                result = self.result(self.layer(site, state.statistics), allotments[site.name])
                yield site, self.applied(site, result)

    def _pruned_globally(
        self, sites: list[LinearSite], state: PruningState, budget: Budget
    ) -> Iterator[tuple[LinearSite, torch.Tensor]]:
        from sparsebench.adapters.pruning import _groups

        def scores() -> Iterator[torch.Tensor]:
            return (self.checked_score(self.layer(site, state.statistics)) for site in sites)

        size = sum(site.weight.numel() for site in sites)
        masks = _groups.global_masks(scores, budget.number, size)
        for site, gone in zip(sites, masks, strict=True):
            yield site, site.weight.detach().masked_fill(gone, 0)

    def result(self, layer: Layer, allotment: Allotment) -> Any:
        """What is kept of a pruned layer: its new weight where the method moves weights, or else its packed mask."""
        from sparsebench.adapters.pruning import _groups

        hook = "update" if self.moves_weights else "mask"
        result: torch.Tensor = getattr(self, hook)(layer, allotment)
        self._check_form(hook, result, layer)
        return result if self.moves_weights else _groups.pack(result)

    def applied(self, site: LinearSite, result: Any) -> torch.Tensor:
        """A layer's new weight, on its device and in its dtype."""
        from sparsebench.adapters.pruning import _groups

        own = site.weight.detach()
        if self.moves_weights:
            weight: torch.Tensor = result.to(own.device, own.dtype)
            return weight
        return own.masked_fill(_groups.unpack(result).to(own.device), 0)

    def layer(self, site: LinearSite, statistics: Statistics | None) -> Layer:
        """A layer as `score`, `mask` and `update` see it: what they write to is a copy.

        Raises:
            InputError: Its weights are no floating-point numbers.
        """
        import torch

        weight = site.weight.detach()
        if not weight.is_floating_point():
            raise InputError(f"{site.name} has weights of {weight.dtype}: quantised layers cannot be pruned")
        copy = weight.to(torch.float32, copy=True)
        return Layer(site.name, copy, statistics[site.name] if statistics is not None else None)

    def allotments(self, sites: list[LinearSite], budget: Budget, state: PruningState) -> dict[str, Allotment]:
        """What each layer has to give, by name."""
        if budget.kind == "pattern":
            share = Allotment(budget.number, self.compare_group, parse_pattern(budget.value))
            return {site.name: share for site in sites}
        ratios = self._ratios(sites, budget.number, state)
        return {site.name: Allotment(s, self.compare_group) for site, s in zip(sites, ratios, strict=True)}

    def _ratios(self, sites: list[LinearSite], sparsity: float, state: PruningState) -> list[float]:
        if self.ratios == "uniform":
            return [sparsity] * len(sites)
        from sparsebench.adapters.pruning._allocation import Measured, layer_ratios

        return layer_ratios(self.ratios, sites, sparsity, state.measured or Measured(), self.settings())

    def settings(self) -> Settings:
        """Knobs of ratios that are measured; the defaults unless the method has knobs for them."""
        from sparsebench.adapters.pruning._allocation import Settings

        return Settings()

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Zeros cost no FLOPs; kept weights are stored with a bitmap, or with their places in a pattern's groups."""
        from sparsebench.account import WeightStorage
        from sparsebench.adapters.pruning._storing import lighter
        from sparsebench.systems.weights import prunable

        shape, share = system.shape, budget.number if budget is not None else 0.0
        sites = prunable(system)
        size = sum(site.weight.numel() for site in sites)
        active = sum(site.weight.numel() * active_share(system, site) for site in sites)
        form = str(budget.value) if budget is not None and budget.kind == "pattern" else "bitmap"
        each: float = shape.bytes_per_weight

        def saved(weights: float) -> float:
            return max(0.0, weights * each - WeightStorage(share, form).bytes_of(weights, each)) / each

        return lighter(shape, request, share * active, saved(active), saved(size))


class CalibratedPruning(PruningAdapter):
    """One pruning method that reads what layers are fed. Subclasses set `card` and write `score`."""

    needs_calibration: ClassVar[bool] = True
    stats_pass: Literal["sequential", "dense"] = "sequential"
    """`sequential`: each block is fed by the pruned blocks before it; `dense`: by the dense model, in one pass."""

    @model_validator(mode="after")
    def _one_pass_for_global(self) -> Self:
        if self.compare_group == "global" and self.stats_pass == "sequential":
            raise ValueError("compare_group 'global' needs all scores at once: stats_pass must be 'dense'")
        return self

    def reads_gram(self) -> bool:
        """Whether statistics must have X X^T."""
        return False

    def prepare_depends_on_budget(self) -> bool:
        """A block-by-block pass does, since later blocks see what earlier ones lost; and so does a search."""
        return self.stats_pass == "sequential" or self.ratios in SEARCHED

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Statistics of the dense model, or a block-by-block pass at this budget."""
        from sparsebench.adapters.passes import dense_statistics, unreached
        from sparsebench.adapters.pruning._allocation import measure

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        if budget is None and self.prepare_depends_on_budget():
            raise InputError(f"{self.card.id} with these knobs is prepared at a budget")
        state = PruningState(budget=budget if self.prepare_depends_on_budget() else None)
        if budget is None or budget.number > 0:
            state.measured = measure(self, system, calibration, budget.number if budget is not None else None)
        facts: dict[str, Any] = {
            "calibration": calibration.describe(),
            "calibration_dtype": f"{str(system.dtype).removeprefix('torch.')} forward, float32 statistics",
        }
        if self.stats_pass == "dense":
            state.statistics = dense_statistics(system, calibration, self.reads_gram())
            facts |= unreached(state.statistics)
        elif budget is not None:
            facts |= self._prune_block_by_block(system, calibration, budget, state)
        if state.measured is not None:
            facts |= state.measured.facts
        return Prepared(state, facts, tokens=calibration.tokens)

    def _prune_block_by_block(
        self, system: CausalLM, calibration: Calibration, budget: Budget, state: PruningState
    ) -> dict[str, int]:
        from sparsebench.adapters.passes import block_by_block
        from sparsebench.systems.weights import prunable, put, restoring

        sites = prunable(system)
        allotments = self.allotments(sites, budget, state)

        def prune(site: LinearSite, inputs: InputStatistics) -> None:
            if allotments[site.name].sparsity > 0:
                result = self.result(self.layer(site, {site.name: inputs}), allotments[site.name])
                weight = self.applied(site, result)
                state.results[site.name] = weight.cpu() if self.moves_weights else result
                put(site, weight)

        with restoring(sites):
            return block_by_block(system, calibration, prune, self.reads_gram())
