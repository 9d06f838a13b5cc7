"""How this process keeps memory that it has freed, and what it does when there is none.

The GNU C library gives every large block back to the kernel and takes it anew, page by page, at the next request: on a
processor that costs a third of the time of a perplexity task. Kept, it is there at once.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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


@dataclass
class AddedMemory:
    """Memory that a piece of work took above what there was before it.

    Attributes:
        bytes: Its peak: resident memory, or that of GPUs where they are in use, each one's own; None where neither can
            be read.
    """

    bytes: int | None = None


@contextmanager
def added_memory(interval: float = 0.02) -> Iterator[AddedMemory]:
    """Within the context, memory is watched; what was added is known after it.

    Resident memory is read from time to time, since the system's own peak cannot be begun anew without losing the
    process's. A peak shorter than the interval may be missed.

    Args:
        interval: Seconds between two readings.
    """
    found = AddedMemory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        gpus = range(torch.cuda.device_count())
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        before = sum(torch.cuda.memory_allocated(gpu) for gpu in gpus)
        yield found
        found.bytes = sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) - before
        return
    first = resident()
    if first is None:
        yield found
        return
    most, done = [first], threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            most[0] = max(most[0], resident() or 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.bytes = max(most[0], resident() or 0) - first


def resident() -> int | None:
    """Resident memory of this process, bytes; None where the system has no /proc."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (ImportError, OSError, IndexError, ValueError):
        return None


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
