"""Kernels launched while the one before still runs (programmatic dependent launch, compute capability 9.0).

They wait on the device until that one is done: the cost of a launch is hidden behind the kernel before.
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


def launched(early: bool) -> dict[str, bool]:
    """What a kernel that has `EARLY` is launched with."""
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
