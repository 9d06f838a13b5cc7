"""Seconds and memory of a piece of work, measured in the same way on every side; needs nothing but torch."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Within the context, wall time (`seconds`) and the peak of resident memory above what there was (`peak_bytes`).

    Memory is that of Linux, which alone lets a process begin its peak anew; elsewhere it is left out.
    """
    found: dict[str, float] = {}
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed is none of the work's
    before = _resident("VmRSS")
    with suppress(OSError):
        CLEAR.write_text("5")  # proc(5): begin VmHWM anew
    start = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - start
    peak = _resident("VmHWM")
    if before is not None and peak is not None:
        found["peak_bytes"] = peak - before


def _resident(name: str) -> int | None:
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
