"""What layer ratios are decided by: outliers, sensitivity of blocks, or a search; apart from what scores weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.adapters.passes import dense_statistics, remembered
from sparsebench.adapters.pruning import _ratios
from sparsebench.adapters.pruning._search import Levels, Search, Space, search
from sparsebench.adapters.pruning.base import SEARCHED, Allotment
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.adapters.passes import Statistics
    from sparsebench.adapters.pruning.base import CalibratedPruning
    from sparsebench.systems.causal_lm import CausalLM, LinearSite


@dataclass(frozen=True)
class Settings:
    """Knobs of ratios that are measured.

    Attributes:
        seed: What noise and searches are drawn with.
        noise: ECoFLaP's size of a perturbation.
        sequences: Sequences that ECoFLaP reads, one perturbation each.
        slack: How far above the target ECoFLaP lets the sparsity of a block rise.
        search: How long EvoPress and random search go on.
    """

    seed: int = 0
    noise: float = 1e-3
    sequences: int = 32
    slack: float = 0.1
    search: Search = field(default_factory=Search)


@dataclass
class Measured:
    """What was measured to decide by.

    Attributes:
        blocks: A number for each block: OWL's share of outliers, ECoFLaP's sensitivity.
        layers: A sparsity for each layer, at one budget.
        facts: For the record.
    """

    blocks: list[float] | None = None
    layers: list[float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def measure(method: CalibratedPruning, system: CausalLM, calibration: Calibration, sparsity: float | None) -> Measured:
    """What `method.ratios` needs to know of the dense model; `sparsity` is given where that depends on it."""
    if method.ratios == "owl":
        shares = outliers(system, dense_statistics(system, calibration))
        return Measured(blocks=shares, facts={"outliers": shares})
    if method.ratios == "ecoflap":
        settings = method.settings()
        what = f"sensitivities on {settings.sequences} of {calibration.hash}, noise {settings.noise}, {settings.seed}"
        found = remembered(system, what, lambda: sensitivities(system, calibration, settings))
        return Measured(blocks=found, facts={"block_sensitivity": found})
    if method.ratios in SEARCHED and sparsity is not None:
        return _searched(method, system, calibration, sparsity)
    return Measured()


def layer_ratios(
    kind: str, sites: Sequence[LinearSite], sparsity: float, measured: Measured, settings: Settings
) -> list[float]:
    """The sparsity of each layer; their mean, weighted by size, is the target."""
    if kind in ("er", "erk"):
        return _ratios.erk([(site.weight.shape[0], site.weight.shape[1]) for site in sites], sparsity)
    if measured.layers is not None:
        return measured.layers
    if measured.blocks is None:
        return [sparsity] * len(sites)
    sizes = [0] * len(measured.blocks)
    for site in sites:
        sizes[site.block] += site.weight.numel()
    if kind == "owl":
        blocks = _ratios.owl(measured.blocks, sizes, sparsity)
    else:
        blocks = _ratios.ecoflap(measured.blocks, sizes, sparsity, settings.slack)
    return [blocks[site.block] for site in sites]


def outliers(system: CausalLM, statistics: Statistics) -> list[float]:
    """Share of outliers among Wanda's scores of each block."""
    from sparsebench.systems.weights import prunable

    scores: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(system.blocks))}
    for site in prunable(system):
        scores[site.block].append(site.weight.detach().float().abs() * statistics[site.name].norm)
    return [_ratios.outlier_share(block) for block in scores.values()]


def sensitivities(system: CausalLM, calibration: Calibration, settings: Settings) -> list[float]:
    """Mean over sequences of |L(W + eps z) - L(W - eps z)| / (2 eps), z normal, for the weights W of each block.

    That is the size of the gradient, by two forward passes a sequence (Sung et al., 2024, section 3.2). Weights and
    passes are float32, whatever the model's dtype: beside large weights of bfloat16 perturbations are rounded away, and
    what the others change in the loss is lost among the roundings of the passes.
    """
    from sparsebench.systems.weights import prunable
    from sparsebench.systems.widening import in_float32

    found = []
    rows = calibration.ids[: settings.sequences]
    with in_float32(system):
        for index in range(len(system.blocks)):
            sites = [site for site in prunable(system) if site.block == index]
            slopes = [
                _slope(system, sites, row, settings, seed_of("ecoflap", settings.seed, place, index))
                for place, row in enumerate(rows)
            ]
            found.append(float(np.mean(slopes)))
    return found


def _slope(system: CausalLM, sites: Sequence[LinearSite], row: np.ndarray, settings: Settings, seed: int) -> float:
    from sparsebench.adapters.pruning._gradients import loss
    from sparsebench.systems.weights import put
    from sparsebench.systems.widening import widened

    ids = torch.from_numpy(row.copy())[None].to(system.device)
    generator = torch.Generator().manual_seed(seed)
    steps = [settings.noise * torch.randn(site.weight.shape, generator=generator) for site in sites]
    losses = []
    weights = [site.weight.detach() for site in sites]  # they stay as they are: `put` writes to copies
    with torch.no_grad(), widened((site.owner for site in sites), copied=True):
        for sign in (1, -1):
            for site, weight, step in zip(sites, weights, steps, strict=True):
                put(site, weight.float() + sign * step.to(weight.device))
            losses.append(loss(system, ids))
    return abs(float(losses[0]) - float(losses[1])) / (2 * settings.noise)


def _searched(method: CalibratedPruning, system: CausalLM, calibration: Calibration, sparsity: float) -> Measured:
    """Levels of layers by their divergence from the dense model, over a database of this method's pruned layers."""
    from sparsebench.systems.weights import prunable, restoring

    sites, settings = prunable(system), method.settings()
    database = _Database(method, system, sites, dense_statistics(system, calibration, method.reads_gram()), sparsity)
    judge = _Judge(system, calibration, max(settings.search.tokens), settings.seed)

    def fitness(candidates: Sequence[Levels], tokens: int) -> list[float]:
        chosen, losses = judge.draw(tokens), []
        for candidate in candidates:
            database.put(candidate)
            losses.append(judge.divergence(chosen))
        return losses

    space = Space.of([site.weight.numel() for site in sites], sparsity, settings.search.step)
    directed = replace(settings.search, directed=method.ratios == "evopress")
    with restoring(sites):
        levels, history = search(space, len(sites), fitness, directed)
    found = [sparsity + settings.search.step * level for level in levels]
    return Measured(layers=found, facts={"divergence": history, "layer_levels": list(levels)})


class _Database:
    """A method's result for each layer at each level, made when it is first asked for."""

    def __init__(
        self,
        method: CalibratedPruning,
        system: CausalLM,
        sites: Sequence[LinearSite],
        statistics: Statistics,
        sparsity: float,
    ) -> None:
        self.method, self.sites, self.statistics, self.sparsity = method, sites, statistics, sparsity
        self.step = method.settings().search.step
        self.originals = [site.weight.detach() for site in sites]
        self.results: dict[tuple[int, int], Any] = {}
        self.now: list[int | None] = [None] * len(sites)

    def put(self, levels: Levels) -> None:
        """Give each layer its weight at that level."""
        from sparsebench.systems.weights import put

        for index, (site, level) in enumerate(zip(self.sites, levels, strict=True)):
            if self.now[index] != level:
                put(site, self.originals[index])
                put(site, self.method.applied(site, self._result(index, level)))
                self.now[index] = level

    def _result(self, index: int, level: int) -> Any:
        if (index, level) not in self.results:
            site = self.sites[index]
            allotment = Allotment(max(0.0, self.sparsity + level * self.step), self.method.compare_group)
            result = self.method.result(self.method.layer(site, self.statistics), allotment)
            self.results[index, level] = result.to(site.weight.dtype) if self.method.moves_weights else result
        return self.results[index, level]


class _Judge:
    """How far a model's predictions are from those of the model that it was."""

    def __init__(self, system: CausalLM, calibration: Calibration, tokens: int, seed: int) -> None:
        used = max(1, -(-min(tokens, calibration.tokens) // calibration.length))
        self.system = system
        self.rows = [torch.from_numpy(row.copy())[None].to(system.device) for row in calibration.ids[:used]]
        self.dense = [self._logits(ids) for ids in self.rows]
        self.generator = np.random.default_rng(seed_of("divergence", seed))

    def draw(self, tokens: int) -> list[int]:
        """Sequences with at least so many tokens, or all that there are."""
        count = min(len(self.rows), -(-tokens // self.rows[0].shape[1]))
        return sorted(self.generator.choice(len(self.rows), count, replace=False).tolist())

    def divergence(self, rows: Sequence[int]) -> float:
        """Mean KL(dense || model as it is now) over the tokens of these sequences, in nats."""
        total = 0.0
        for index in rows:
            dense = self.dense[index].float().log_softmax(dim=-1)
            now = self._logits(self.rows[index]).float().log_softmax(dim=-1)
            total += float((dense.exp() * (dense - now)).sum(dim=-1).mean())
        return total / len(rows)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        from sparsebench.adapters.passes import attending

        with torch.no_grad(), attending(self.system):
            logits: torch.Tensor = self.system.model(input_ids=ids, use_cache=False).logits[0]
        return logits
