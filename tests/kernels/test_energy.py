"""Joules by NVML's counters; here NVML is one that the test makes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.errors import MissingError
from sparsebench.kernels.energy import EnergyMeter


class NVMLError(Exception):
    """As the library's."""


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    """Millijoules by GPU, of an NVML that knows these."""
    known: dict[Any, int] = {0: 5_000, "GPU-a": 1_000, "GPU-b": 2_000}

    def handle(device: Any) -> Any:
        if device not in known:
            raise NVMLError("not found")
        return device

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=known.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return known


def test_joules_are_those_between_entering_and_leaving(counters: dict[Any, int]) -> None:
    with EnergyMeter() as meter:
        counters[0] += 1_500
    assert meter.joules == 1.5
    with pytest.raises(KeyError), meter:
        raise KeyError
    assert meter.joules is None


def test_several_gpus_are_summed_by_their_names(counters: dict[Any, int], monkeypatch: pytest.MonkeyPatch) -> None:
    names = {torch.device("cuda", 0): "b", torch.device("cuda", 3): "a"}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=names[device]))
    meter = EnergyMeter.of(names)
    counters["GPU-a"] += 500
    assert meter.read() == 3.5
    with pytest.raises(MissingError, match="no counter of energy is known for cpu"):
        EnergyMeter.of([torch.device("cpu")])


def test_what_lacks_is_named(counters: dict[Any, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="GPU 7 has no energy counter: not found"):
        EnergyMeter(7)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingError, match="nvidia-ml-py"):
        EnergyMeter()
