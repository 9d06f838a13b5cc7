"""Environments of peers: one virtual environment each, with pinned versions, made when it is first asked for.

An environment sees the packages of the Python that makes it, behind its own: what a peer pins is installed there, and
torch and the like are not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import platformdirs

PINNED: dict[str, tuple[str, ...]] = {
    "llm-compressor": ("llmcompressor==0.14.0.1", "transformers==5.17.0"),
    "torchao": ("torchao==0.18.0",),
    "kvpress": ("kvpress==0.5.5", "transformers==5.2.0"),
}
"""What is installed for each peer, with those of its dependencies that are not here in a version that it takes."""


def default_root() -> Path:
    """Where environments are kept unless told otherwise."""
    return Path(platformdirs.user_cache_dir("sparsebench")) / "parity"


def python_of(peer: str, root: Path) -> Path:
    """The Python of a peer's environment, which is made where it is missing."""
    pinned = PINNED[peer]
    digest = hashlib.sha256("\n".join((*pinned, sys.version)).encode()).hexdigest()[:8]
    folder = root / f"{peer}-{digest}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    print(f"making {folder}: {', '.join(pinned)}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "-c", str(constraints)]
    subprocess.run([*pip, *pinned], check=True)
    done.touch()
    return python


def run(peer: str, root: Path, script: Path, *arguments: str) -> None:
    """Run a script in a peer's environment; its output is seen."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python_of(peer, root)), str(script), *arguments], check=True, env=environment)
