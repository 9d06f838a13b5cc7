"""Numbers that the host knows and a device needs."""

from __future__ import annotations

import numpy as np
import torch


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array of any shape on a device, of the same type; on a processor it is the array's own memory.

    The host does not wait until the device has done what it was given before. A copy from memory that can be paged out
    would, each time.
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
