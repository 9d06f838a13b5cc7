"""CFSP: channels of MLPs are taken out, more of them in blocks that change less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.budget import Budget
from sparsebench.cost import PhaseCosts, Request, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM

SHARPNESS = 128 * 1024 / 1e4
"""What a block's mean angle, less the mean over blocks, is multiplied with before the sigmoid.

The released code sums the angles of a block over its calibration text, 128 sequences of 1,024 tokens, and divides the
sum by 10^4; its factor `a` is 1. Here angles are means over tokens, so that shares do not depend on the text's length,
and the number of those tokens is in this factor.
"""


class CFSP(Adapter):
    """Coarse: a block's share by the angle between its input and output; fine: channels by weights and activations."""

    card: ClassVar[MethodCard] = MethodCard(
        id="cfsp",
        version=2,
        family="pruning",
        title="CFSP",
        summary="MLP channels of the smallest relative weights times activation norm are taken out, more of them in "
        "blocks whose output is nearer to their input; linear layers become smaller.",
        paper=Paper(
            title="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information",
            authors="Yuxin Wang and Minghua Ma and Zekun Wang and Jingchang Chen and Huiming Fan and Liping Shan and "
            "Qing Yang and Dongliang Xu and Ming Liu and Bing Qin",
            year=2025,
            venue="International Conference on Computational Linguistics",
            url="https://arxiv.org/abs/2409.13199",
            key="wang2025cfsp",
        ),
        unit="channel",
        adaptivity="static",
        training="calibration",
        modes=("executed",),
        nearest="depth",
        differs="thins the MLPs of all blocks instead of leaving blocks out",
        deviations=(
            "the budget is a share of all linear weights of the blocks; the paper's is one of the MLPs' channels",
            "weights are relative to the other channels' by default; relative to their own channel's, as in the "
            "released code, they cancel",
            "the calibration text is the suite's, and shares of blocks are as sharp as after the released code's 128 x "
            "1,024 tokens whatever its length",
            "channels are not rounded to multiples of 128 unless the knob says so",
            "without the paper's recovery by LoRA",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    relative: Literal["row", "channel"] = "row"
    """What a channel's weights are divided by: `row`: the sum over channels of the same input or output; `channel`:
    the sum over the channel itself, after which the activations alone decide."""
    power: float = Field(1.0, ge=0)
    """Power of the activation norm."""
    multiple: int = Field(1, ge=1)
    """Channels of a block are a multiple of this; the paper's kernels want 128."""

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Angles of the blocks and scores of the channels, shared by all budgets."""
        from sparsebench.adapters.passes import dense_statistics
        from sparsebench.adapters.pruning._influence import influences
        from sparsebench.adapters.pruning._removal import feed_forwards

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        statistics = dense_statistics(system, calibration)
        angles = [influence.angle / max(1, influence.tokens) for influence in influences(system, calibration)]
        scores = {
            mlp.down.name: self.score([*mlp.rows_of()], mlp.down.weight.detach(), statistics[mlp.down.name].norm)
            for mlp in feed_forwards(system)
        }
        facts = {"calibration": calibration.describe(), "block_angles": angles}
        return Prepared((angles, scores), facts, tokens=calibration.tokens)

    def score(self, up: Sequence[torch.Tensor], down: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """What each channel is worth, float32 [channels].

        Args:
            up: Weights of the layers that give the channels, each [channels, in].
            down: Weight of the layer that reads them, [out, channels].
            norm: Norm of each channel's activations, [channels].
        """
        dim = 1 if self.relative == "row" else 0
        shares = (down.float().abs() * norm, *(weight.T.float().abs() for weight in up))
        parts = [(share / share.sum(dim=dim, keepdim=True).clamp(min=1e-30)).mean(dim=0) for share in shares]
        found: torch.Tensor = sum(parts[1:], start=parts[0]) * norm.pow(self.power)
        return found

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The model with smaller MLPs; on exit each parameter has its original memory again.

        Raises:
            InputError: The model has no MLPs that can be thinned, or they have fewer weights than are to go.
        """
        from sparsebench.adapters.pruning._removal import feed_forwards, without_channels
        from sparsebench.adapters.pruning._storing import refuse_stored
        from sparsebench.systems.weights import prunable

        self.check_budget(budget)
        refuse_stored(self.card.id, system)
        if budget is None or budget.number == 0:
            yield system
            return
        angles, scores = prepared.state
        mlps = feed_forwards(system)
        costs = [mlp.channel_weights for mlp in mlps]
        target = budget.number * sum(site.weight.numel() for site in prunable(system))
        widths = [mlp.channels for mlp in mlps]
        left = self.widths([angles[mlp.block] for mlp in mlps], widths, costs, target)
        best = [scores[mlp.down.name].sort(descending=True, stable=True).indices for mlp in mlps]
        kept = [(mlp, order[:width].sort().values) for mlp, order, width in zip(mlps, best, left, strict=True)]
        with without_channels(system, kept):
            yield system

    def widths(self, angles: Sequence[float], widths: Sequence[int], costs: Sequence[int], target: float) -> list[int]:
        """Channels that each MLP keeps.

        Args:
            angles: Mean angle of each MLP's block.
            widths: Channels that each MLP has.
            costs: Weights of one channel.
            target: Weights that are to go.

        Raises:
            InputError: The MLPs have too few weights.
        """
        sizes = [width * cost for width, cost in zip(widths, costs, strict=True)]
        least = sum(min(self.multiple, width) * cost for width, cost in zip(widths, costs, strict=True))
        if not sizes or target > sum(sizes) - least:
            share = f"{target:,.0f} weights are to go, and MLPs that can be thinned have {sum(sizes):,}"
            raise InputError(f"{self.card.id}: {share}", "attention stays as it is: ask for less, or take another")
        densities = shares(angles, sizes, target / sum(sizes))
        wanted = [density * width / self.multiple for density, width in zip(densities, widths, strict=True)]
        units = [min(max(1, int(w)), width // self.multiple or 1) for w, width in zip(wanted, widths, strict=True)]
        over = sum((w - u * self.multiple) * c for w, u, c in zip(widths, units, costs, strict=True)) - target
        for index in sorted(range(len(units)), key=lambda i: units[i] - wanted[i]):
            step = self.multiple * costs[index]
            if over >= step / 2 and (units[index] + 1) * self.multiple <= widths[index]:
                units[index] += 1
                over -= step
        return [min(unit * self.multiple, width) for unit, width in zip(units, widths, strict=True)]

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """The dense cost of a model with so many weights less."""
        from sparsebench.systems.weights import prunable

        shape = system.shape
        gone = round((budget.number if budget else 0.0) * sum(site.weight.numel() for site in prunable(system)))
        smaller = replace(shape, linear_params=shape.linear_params - gone, stored_params=shape.stored_params - gone)
        return dense_cost(smaller, request)


def shares(angles: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
    """Share of its channels that each MLP keeps: as a sigmoid of its block's angle less the mean angle.

    Where the largest would exceed 1, the spread is narrowed until it does not, with 5 % to spare, as the released code
    does; the mean, weighted by size, is the target.
    """
    from math import exp

    from sparsebench.adapters.pruning._ratios import levelled

    mean = sum(angles) / len(angles)
    worth = [1 / (1 + exp(-SHARPNESS * (angle - mean))) for angle in angles]
    average = sum(worth) / len(worth)
    spread = 1.0
    if max(worth) / average * (1 - sparsity) >= 1:
        spread = average * (1 / (1 - sparsity) - 1) / (max(worth) - average) / 1.05 if max(worth) > average else 0.0
    kept = [(average + spread * (w - average)) / average * (1 - sparsity) for w in worth]
    return [1 - s for s in levelled([1 - k for k in kept], sizes, sparsity)]
