"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum


class Executor(StrEnum):
    """Where cells run."""

    inline = "inline"
    process = "process"
    ray = "ray"
