"""What a device needs: numbers that the host knows, and copies of what lies on another device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class Copies(dict[torch.device, T], Generic[T]):
    """One thing that is made of tensors, by device: copied when the first layer on another device asks for it.

    Args:
        original: The thing.
        device: Where it lies.
        moved: Gives a copy of it on another device.
    """

    def __init__(self, original: T, device: torch.device, moved: Callable[[T, torch.device], T]) -> None:
        super().__init__({device: original})
        self.original = original
        self.moved = moved

    def __missing__(self, device: torch.device) -> T:
        copy = self[device] = self.moved(self.original, device)
        return copy


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array of any shape on a device, of the same type; on a processor it is the array's own memory.

    The host does not wait until the device has done what it was given before. A copy from memory that can be paged out
    would, each time.
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
