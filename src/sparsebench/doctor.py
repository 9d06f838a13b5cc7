"""What a machine has for SparseBench, and how to mend what it lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        good: Whether it is as it should be.
        optional: Whether SparseBench works without it.
        mend: What to do.
    """

    subject: str
    state: str
    good: bool
    optional: bool = False
    mend: str = ""


def findings() -> Iterator[Finding]:
    """Python, packages, devices, cache, data."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", python, sys.version_info >= (3, 11), mend="Python 3.11 or later")
    yield from _packages()
    yield from _devices()
    yield _cache()
    yield _data()
    yield _hub()
    yield from _extras()


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for text in requires("sparsebench") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, "not installed", False, mend=f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wanted = f"pip install '{requirement}'"
            yield Finding(requirement.name, f"{found}, needs {requirement.specifier}", False, mend=wanted)
        elif requirement.name in ("torch", "transformers", "lm-eval"):
            yield Finding(requirement.name, found, True)


def _devices() -> Iterator[Finding]:
    import torch

    from sparsebench.environment import processor
    from sparsebench.systems.loading import resolve_dtype

    dtype = str(resolve_dtype("auto")).removeprefix("torch.")
    yield Finding("processor", f"{processor()}, models run in {dtype}", True)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding(f"cuda:{index}", torch.cuda.get_device_name(index), True)
    else:
        yield Finding(
            "GPU", "none found by torch", False, optional=True, mend="install a CUDA build of torch to use one"
        )


def _cache() -> Finding:
    from sparsebench.data.cache import VARIABLE, cache_folder

    folder = cache_folder()
    place = folder if folder.exists() else folder.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    good = os.access(place, os.W_OK) and free > 2
    return Finding("cache", f"{folder}, {free:.0f} GiB free", good, mend=f"set {VARIABLE} to a folder with 2 GiB free")


def _data() -> Finding:
    folder = os.environ.get("SPARSEBENCH_DATA")
    if not folder:
        hint = "set SPARSEBENCH_DATA to the folder of local data sets; embedded tasks need none"
        return Finding("SPARSEBENCH_DATA", "not set", False, optional=True, mend=hint)
    good = os.path.isdir(folder)
    return Finding(
        "SPARSEBENCH_DATA", folder if good else f"{folder} is no folder", good, mend="name an existing folder"
    )


def _hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hint = "unset HF_HUB_OFFLINE to fetch hf: models and data"
    return Finding("Hugging Face hub", "offline by HF_HUB_OFFLINE" if offline else "allowed", not offline, True, hint)


def _extras() -> Iterator[Finding]:
    for extra, module in (("ann", "hnswlib"),):
        found = importlib.util.find_spec(module) is not None
        state = "installed" if found else "not installed"
        yield Finding(f"extra [{extra}]", state, found, True, f"pip install 'sparsebench[{extra}]'")
