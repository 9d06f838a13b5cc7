"""Kernels launched while the one before them still runs (programmatic dependent launch, compute capability 9.0).

Such a kernel waits on the device until the one before is done: the cost of its launch is hidden behind that one.
All kernels of a chain have to wait: a kernel that does not would not hold back those behind it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(EARLY: tl.constexpr):
    """Wait for the kernel before, and let the one behind be launched; it will wait for this one."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def launch(early: bool) -> dict[str, bool]:
    """Arguments of a launch whose kernel calls `begin`."""
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
