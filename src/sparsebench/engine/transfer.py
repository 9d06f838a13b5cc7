"""Numbers that the host knows and a device needs."""

from __future__ import annotations

import numpy as np
import torch


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of an array on a device. The host does not wait until the device has done what it was given before.

    A copy from memory that can be paged out would wait, each of them, and all that follows with it.
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
