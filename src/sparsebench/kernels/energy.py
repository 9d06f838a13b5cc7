"""Energy of GPUs through NVML, by the counters of whole boards."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sparsebench.errors import MissingError

if TYPE_CHECKING:
    import torch


class EnergyMeter:
    """Joules that GPUs took between entering and leaving; millijoule counters, refreshed every few tens of ms.

    What else runs on a board counts, and so does what it takes when idle.

    Args:
        devices: Indices as NVML counts, which CUDA_VISIBLE_DEVICES does not change, or names (`GPU-...`).

    Raises:
        MissingError: The package nvidia-ml-py is not installed, or a GPU has no counter.
    """

    def __init__(self, *devices: int | str) -> None:
        try:
            import pynvml
        except ImportError:
            raise MissingError("energy needs the package nvidia-ml-py", "pip install 'sparsebench[gpu]'") from None
        self._nvml: Any = pynvml
        self.joules: float | None = None
        try:
            pynvml.nvmlInit()
            self._handles = [
                pynvml.nvmlDeviceGetHandleByUUID(device)
                if isinstance(device, str)
                else pynvml.nvmlDeviceGetHandleByIndex(device)
                for device in devices or (0,)
            ]
            self.read()
        except pynvml.NVMLError as error:
            raise MissingError(f"GPU {', '.join(map(str, devices or (0,)))} has no energy counter: {error}") from None

    @classmethod
    def of(cls, devices: Iterable[torch.device]) -> EnergyMeter:
        """A meter of the GPUs that torch knows as these devices.

        Raises:
            MissingError: One of them is no NVIDIA GPU, or see above.
        """
        import torch

        names = []
        for device in devices:
            name = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
            if name is None:
                raise MissingError(f"no counter of energy is known for {device}")
            names.append(f"GPU-{name}")
        return cls(*sorted(names))

    def read(self) -> float:
        """Joules since the driver was loaded, of all of these GPUs."""
        return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles) / 1000

    def __enter__(self) -> EnergyMeter:
        self.joules = None
        self._start = self.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.joules = self.read() - self._start
