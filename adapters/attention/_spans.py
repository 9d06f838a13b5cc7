"""Spans of heads: what leaving keys out of them means to the loss, and the plan that minimises it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebench.adapters.attention._allowance import Allowance
from sparsebench.adapters.attention._estimate import attention_weights, grouped
from sparsebench.adapters.attention._selection import SinkAndRecent, sink_and_recent
from sparsebench.adapters.passes import attending
from sparsebench.engine.attention import AttentionView
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM


def span(view: AttentionView, allowance: Allowance, sinks: int) -> SinkAndRecent:
    """First and recent keys; no more than a quarter of them are first ones."""
    counts = allowance.counts(view)
    return sink_and_recent(view, counts, (counts // 4).clamp(max=sinks))


class _Weights:
    """Attends densely through weights that a gradient can be taken of."""

    def __init__(self) -> None:
        self.views: dict[int, AttentionView] = {}
        self.weights: dict[int, torch.Tensor] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        weights = attention_weights(view)
        if not weights.requires_grad:
            weights.requires_grad_()
        self.views[view.layer], self.weights[view.layer] = view, weights
        out = grouped(weights.to(view.value.dtype), view.group, 1) @ view.value[:, :, None]
        return out.flatten(1, 2)


def influences(system: CausalLM, ids: np.ndarray, densities: list[float], sinks: int) -> dict[int, torch.Tensor]:
    """What the spans of each head would do to the loss of a text, by a first-order estimate.

    Leaving out weights of sum m, the others become A / (1 - m): the loss changes by G.(A' - A), with G its gradient.

    Args:
        system: The model.
        ids: Token ids, [sequences, length].
        densities: Shares of pairs that a span may leave.
        sinks: First keys of a span.

    Returns:
        Sums over sequences and queries of the absolute change, float64 [heads, densities], by layer.
    """
    found: dict[int, torch.Tensor] = {}
    for row in ids:
        watcher = _Weights()
        tokens = torch.from_numpy(row.copy())[None].to(system.device)
        with system.acting(decode=False, prefix_invariant=True, policy=watcher), attending(system), torch.enable_grad():
            logits = system.model(input_ids=tokens, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits.float(), tokens[0, 1:])
            layers = sorted(watcher.weights)
            gradients = torch.autograd.grad(loss, [watcher.weights[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            weights, view = watcher.weights[layer].detach()[0], watcher.views[layer]
            changes = [change(weights, gradient[0], _left_out(view, share, sinks)) for share in densities]
            found[layer] = found.get(layer, 0) + torch.stack(changes, dim=1)
    return found


def _left_out(view: AttentionView, density: float, sinks: int) -> torch.Tensor:
    """Keys outside the span, bool [queries, keys]."""
    kept = span(view, Allowance(density=density), sinks).keep(view, 0)
    return ~kept[0, 0]


def change(weights: torch.Tensor, gradient: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """By how much the loss changes where weights are left out and the others renormalised, float64 [heads].

    Args:
        weights: Attention of one sequence, [heads, queries, keys].
        gradient: Of the loss by these weights.
        left_out: Bool [queries, keys].
    """
    effect = weights.double() * gradient.double()
    gone = (effect * left_out).sum(dim=-1)
    mass = (weights.double() * left_out).sum(dim=-1).clamp(max=1 - 1e-6)
    return ((effect.sum(dim=-1) - gone) * mass / (1 - mass) - gone).abs().sum(dim=-1)


def plan(influence: dict[int, torch.Tensor], steps: list[float]) -> dict[int, torch.Tensor]:
    """Which step each head takes, so that influence is least and the steps' mean is 1, up to one step of one head.

    Args:
        influence: [heads, steps], by layer.
        steps: Densities as multiples of the budget's; 1 is among them.

    Returns:
        Places in `steps`, int64 [heads], by layer.

    Raises:
        InputError: The programme was not solved.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers = sorted(influence)
    costs = torch.cat([influence[layer].cpu() for layer in layers]).numpy()
    heads, count = costs.shape
    each = np.kron(np.eye(heads), np.ones(count))
    total = np.tile(np.array(steps), heads)[None]
    finest = min([b - a for a, b in zip(sorted(steps), sorted(steps)[1:], strict=False)], default=0.0)
    solved = milp(
        costs.flatten() / max(float(np.abs(costs).max()), 1e-30),
        integrality=np.ones(heads * count),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(each, 1, 1), LinearConstraint(total, heads - finest, heads)],
        options={"mip_rel_gap": 1e-4, "time_limit": 60.0},
    )
    if solved.x is None:
        raise InputError(f"moa: no plan of spans was found: {solved.message}")
    places = torch.from_numpy(solved.x.reshape(heads, count).argmax(axis=1))
    sizes = [len(influence[layer]) for layer in layers]
    return dict(zip(layers, torch.split(places, sizes), strict=True))
