"""Energy of a GPU through NVML, by the counter of the whole board."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from sparsebench.errors import MissingError


class EnergyMeter:
    """Joules that a GPU took between entering and leaving; millijoule counter, refreshed every few tens of ms.

    Args:
        device: Index of the GPU as NVML counts, which CUDA_VISIBLE_DEVICES does not change.

    Raises:
        MissingError: The package nvidia-ml-py is not installed, or the GPU has no counter.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            import pynvml
        except ImportError:
            raise MissingError("energy needs the package nvidia-ml-py", "pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        self.joules: float | None = None
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(device)
            self._read()
        except pynvml.NVMLError as error:
            raise MissingError(f"GPU {device} has no energy counter: {error}") from None

    def _read(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def __enter__(self) -> EnergyMeter:
        self.joules = None
        self._start = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.joules = (self._read() - self._start) / 1000
