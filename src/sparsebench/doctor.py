"""What a machine has for SparseBench, and how to mend what it lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

ROOM = 2
"""GiB that the cache should have."""


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
    yield from _plugins()


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
    try:
        import torch

        from sparsebench.systems.loading import resolve_dtype

        dtype = str(resolve_dtype("auto")).removeprefix("torch.")
    except Exception as error:  # a library that is missing or of another build fails in its own way
        yield Finding(
            "torch", f"does not load: {_first_line(error)}", False, mend="pip install --force-reinstall torch"
        )
        return
    from sparsebench.environment import processor

    yield Finding("processor", f"{processor()}, models run in {dtype}", True)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(f"cuda:{index}")
        return
    mend = "install a CUDA build of torch to use one"
    if torch.version.cuda is not None:
        mend = f"this torch is built for CUDA {torch.version.cuda}: look at the driver with nvidia-smi"
    there = " (but nvidia-smi is here)" if shutil.which("nvidia-smi") else ""
    yield Finding("GPU", f"none found by torch{there}", False, optional=True, mend=mend)


def _gpu(device: str) -> Finding:
    """Whether a GPU really computes."""
    import torch

    name = torch.cuda.get_device_name(device)
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        mend = "free its memory, or leave it out with CUDA_VISIBLE_DEVICES; a GPU newer than torch needs a newer torch"
        return Finding(device, f"{name} does not compute: {_first_line(error)}", False, mend=mend)
    return Finding(device, name, True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cache() -> Finding:
    from sparsebench.data.cache import VARIABLE, cache_folder

    folder = cache_folder()
    mend = f"set {VARIABLE} to a folder with {ROOM} GiB free"
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return Finding("cache", f"{folder}: {place} is no folder", False, mend=mend)
    free = shutil.disk_usage(place).free / 2**30
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("cache", f"{folder}: cannot be written ({error.strerror})", False, mend=mend)
    return Finding("cache", f"{folder}, {free:.0f} GiB free", free > ROOM, mend=mend)


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
    for extra, module in (("ann", "hnswlib"), ("ray", "ray")):
        found = importlib.util.find_spec(module) is not None
        state = "installed" if found else "not installed"
        yield Finding(f"extra [{extra}]", state, found, True, f"pip install 'sparsebench[{extra}]'")


def _plugins() -> Iterator[Finding]:
    """Adapters and tasks of other packages; a broken one is left out of every list."""
    for group in ("sparsebench.adapters", "sparsebench.tasks"):
        for point in entry_points(group=group):
            try:
                point.load()
            except Exception as error:
                state = f"{point.value} does not load: {_first_line(error)}"
                yield Finding(f"plugin {point.name}", state, False, mend="update or remove its package")
            else:
                yield Finding(f"plugin {point.name}", point.value, True)
