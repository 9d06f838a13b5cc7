"""The identity of a cell: one function, for the specification before a run and for the record after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

VERSION = 1
"""Raised whenever the same specification would mean something else."""

EXCLUDED = frozenset({"title", "executor", "batch_tokens", "device", "devices", "priority"})
"""Fields of a specification that say how a cell is run or shown, not what it is."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(data: object) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities are refused."""
    return _CANONICAL.encode(data)


def digest(data: object) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def cell_id(spec: Mapping[str, Any]) -> str:
    """The id of the cell that `spec` describes: 16 hex digits.

    Args:
        spec: The cell's specification as plain data, or a record's `spec`; what is in `EXCLUDED` plays no part.
    """
    kept = {key: value for key, value in spec.items() if key not in EXCLUDED and value is not None}
    return digest({"identity": VERSION, **kept})[:16]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from names and numbers: `seed_of("random", 0)`; equal parts give equal seeds on every machine."""
    return int(digest([str(part) for part in parts])[:16], 16) >> 1
