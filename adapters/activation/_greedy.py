"""TEAL's search for the sparsity of each site, block by block (Liu et al., 2025, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.activation._masking import Masking
from sparsebench.adapters.activation.base import hooked
from sparsebench.adapters.passes import attending, block_calls
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.activation.base import ActivationAdapter, ActivationState, Site
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM

TOKENS = 20_480
"""Calibration tokens that the search reads at most, in whole sequences; ten of 2,048 in the paper."""
STEP = 0.05
"""How much the first site of a block gains in a step; others gain as many weights."""
LAST = 0.25
"""Share of a sequence's tokens, at its end, on which a block's error is measured."""


def allocate(
    adapter: ActivationAdapter,
    system: CausalLM,
    calibration: Calibration,
    state: ActivationState,
    sparsity: float,
) -> dict[str, float]:
    """Sparsity of each site, by name; in each block their mean, weighted by weights, is the target.

    Each step makes that site sparser which then changes the output of the block least. Blocks are fed by the dense
    blocks before them. The text is read as a prompt: for a method that acts in decode alone its last half, as in the
    paper, stands for what is decoded.

    Raises:
        InputError: The model has experts, of which each token would leave out others.
    """
    if system.experts:
        raise InputError(f"{adapter.card.id} does not search for the sparsity of experts", "set allocation: uniform")
    if adapter.scope == "decode":
        adapter = adapter.model_copy(update={"scope": "last-half"})
    sites = adapter.sites(system)
    levels = dict.fromkeys((site.name for site in sites), 0.0)
    masking = Masking(adapter, system, sites, levels, state, counting=False)
    with torch.no_grad(), attending(system), masking.watching():
        read = replace(calibration, ids=calibration.ids[: max(1, TOKENS // calibration.length)])
        batches = [block_calls(system, ids.to(system.device)) for ids in read.batches(system.batch_tokens)]
        hidden = [calls[0].hidden for calls in batches]
        for index in range(len(system.blocks)):
            dense = [calls[index].run(states) for calls, states in zip(batches, hidden, strict=True)]

            def error(
                index: int = index, fed: list[torch.Tensor] = hidden, wanted: list[torch.Tensor] = dense
            ) -> float:
                found = [calls[index].run(states) for calls, states in zip(batches, fed, strict=True)]
                # Each sequence counts alike, whatever batch it is in.
                return sum(len(a) * change(a, b) for a, b in zip(found, wanted, strict=True))

            own = [site for site in sites if site.block == index]
            with hooked(own, masking):
                search(own, masking.levels, masking.set_level, error, sparsity)
            hidden = dense
    return dict(masking.levels)


def search(
    sites: list[Site],
    levels: dict[str, float],
    set_level: Callable[[str, float], None],
    error: Callable[[], float],
    sparsity: float,
) -> None:
    """Raise the levels of a block's sites step by step until the target is met."""
    sizes = {site.name: site.channels * site.saved for site in sites}
    lacking = sparsity * sum(sizes.values())
    while sites and lacking > 1e-6 * sum(sizes.values()):
        step = min(STEP * sizes[sites[0].name], lacking)
        errors = {}
        for name, size in sizes.items():
            before = levels[name]
            if before + step / size < 1:
                set_level(name, before + step / size)
                errors[name] = error()
                set_level(name, before)
        if not errors:
            return
        best = min(errors, key=lambda name: errors[name])
        set_level(best, levels[best] + step / sizes[best])
        lacking -= step


def change(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far a block's output is from the dense one: norms over the last tokens, averaged over channels."""
    first = int(found.shape[1] * (1 - LAST))
    return float((found[:, first:] - wanted[:, first:]).float().norm(dim=1).mean())
