"""What errors of weights cost: squared gradients of the loss on a calibration text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsebench.adapters.passes import attending

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM


def fisher_diagonal(system: CausalLM, calibration: Calibration, sequences: int) -> dict[str, torch.Tensor]:
    """Mean over sequences of the squared gradient of each weight, float32 [out, in] by name of the layer.

    Args:
        system: The model as it is.
        calibration: The text.
        sequences: How many of its sequences are read, from the first on.
    """
    from sparsebench.systems.weights import prunable

    sites = prunable(system)
    owners = list({id(site.owner): site.owner for site in sites}.values())
    found = [torch.zeros(owner.shape, device=owner.device) for owner in owners]
    wanted = [owner.requires_grad for owner in owners]
    used = min(sequences, calibration.sequences)
    try:
        for owner in owners:
            owner.requires_grad_(True)
        for row in calibration.ids[:used]:
            ids = torch.from_numpy(row.copy())[None].to(system.device)
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(system, ids), owners)
            for total, gradient in zip(found, gradients, strict=True):
                total += gradient.float().square_() / used
    finally:
        for owner, before in zip(owners, wanted, strict=True):
            owner.requires_grad_(before)
    totals = {id(owner): total for owner, total in zip(owners, found, strict=True)}
    return {site.name: site.part(totals[id(site.owner)]).contiguous() for site in sites}


def loss(system: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over sequences of ids, [batch, length]; computed in float32."""
    with attending(system):
        logits = system.model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
