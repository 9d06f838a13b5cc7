"""Repositories of the Hugging Face hub, through its own client and cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sparsebench.errors import MissingError

RepoType = Literal["model", "dataset"]

#: Weights in formats that are not loaded: pickles, and those of other frameworks.
UNUSED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.tflite")


def fetch_snapshot(
    name: str,
    revision: str | None = None,
    *,
    kind: RepoType = "model",
    patterns: Sequence[str] | None = None,
    local_only: bool = False,
) -> Path:
    """The folder of a repository at a revision, in the hub's own cache; its name is the commit.

    With HF_HUB_OFFLINE set nothing is fetched, and only what is cached is found.

    Args:
        name: `org/name`.
        revision: Branch, tag or commit; None for the default branch.
        kind: A model or a data set.
        patterns: Files to fetch, as globs; None for all. Of a model, weights that are not loaded are left out.
        local_only: Look into the cache only.

    Raises:
        MissingError: It cannot be had, or no file matches the patterns.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = local_only or constants.is_offline_mode()
    where = f"hf:{name}" + (f"@{revision}" if revision else "")
    try:
        folder = Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(patterns) if patterns else None,
                ignore_patterns=list(UNUSED_WEIGHTS) if kind == "model" and not patterns else None,
                local_files_only=offline,
            )
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise MissingError(f"{where} is not to be had: {_first_line(error)}", _hint(name, kind, offline)) from error
    if patterns and not any(any(folder.glob(pattern)) for pattern in patterns):
        raise MissingError(f"{where} has no {' or '.join(patterns)}", _hint(name, kind, offline))
    return folder


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _hint(name: str, kind: RepoType, offline: bool) -> str:
    command = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    if offline:
        return f"only the hub's cache was looked at; where the hub can be reached: {command}"
    return f"check the name, the revision, the network and (for gated ones) HF_TOKEN: {command}"
