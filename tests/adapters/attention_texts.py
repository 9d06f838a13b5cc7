"""Texts of random tokens, methods attached with such texts to calibrate on, and what the model says of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparsebench.adapters import attached, create
from sparsebench.adapters.calibration import Calibration


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def calibration() -> Calibration:
    return Calibration("random", np.array([random_ids(32, seed) for seed in range(4)]))


def on(system: Any, *members: tuple[str, dict[str, Any]]) -> Any:
    return attached(system, [create(name, **knobs) for name, knobs in members], calibration())


def plain_logprobs(system: Any, ids: list[int], prompt: int) -> np.ndarray:
    """Log-probabilities of the tokens behind a prompt, by calls of the model itself: the prompt, then token by token."""
    with torch.inference_mode():
        out = system.model(torch.tensor([ids[:prompt]]), use_cache=True)
        logits = [out.logits[0, -1]]
        for token in ids[prompt:-1]:
            out = system.model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0, -1])
    return torch.log_softmax(torch.stack(logits), dim=-1)[range(len(logits)), ids[prompt:]].numpy()
