"""Where a number was computed: hardware, libraries, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from sparsebench.redaction import redacted_command

PACKAGES = (
    "sparsebench",
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "numpy",
    "scipy",
    "pandas",
    "bm25s",
    "sentence-transformers",
    "pytrec-eval-terrier",
)


@cache
def packages() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} x {cores}"


def hardware(device: str = "cpu", devices: int = 1) -> str:
    """Name of what computes on `device`, or on so many GPUs from it on."""
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
        return name if devices == 1 else f"{devices} x {name}"
    return processor()


@cache
def commit() -> tuple[str | None, bool | None]:
    """Commit of the source tree that runs, and whether it has changes; (None, None) for an installed package.

    Results that were stored in the tree change no number and do not count as changes.
    Where the tree was copied without its history, `SPARSEBENCH_COMMIT` names the commit; changes are then unknown.
    """
    named = os.environ.get("SPARSEBENCH_COMMIT", "")
    if re.fullmatch(r"[0-9a-f]{7,40}", named):
        return named, None
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        top = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if top.returncode:
            return None, None
        asked = ["git", "-C", here, "status", "--porcelain", "--", ":/", ":(top,exclude)leaderboard/results"]
        dirty = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None, None
    return top.stdout.strip(), bool(dirty.stdout.strip())


def command() -> str:
    """The command line, without the folder of the program and with secrets left out."""
    return redacted_command([os.path.basename(sys.argv[0]), *sys.argv[1:]]) if sys.argv else ""


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, bytes."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
