"""How this process keeps memory that it has freed, and what it does when there is none.

The GNU C library gives every large block back to the kernel and takes it anew, page by page, at the next request: on a
processor that costs a third of the time of a perplexity task. Kept, it is there at once.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


@cache
def _libc() -> Any:
    """The C library, where it is GNU's; else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except OSError:
        return None


def keep_freed_memory() -> None:
    """From now on freed blocks stay with the process, until `give_back`; without the GNU C library nothing changes."""
    if (libc := _libc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return to the kernel what is free."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


def free() -> None:
    """Drop what nothing refers to, here and on the GPU."""
    import torch

    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
