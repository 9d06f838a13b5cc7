"""Tiny models that the tests of a module share."""

from __future__ import annotations

from typing import Any

import models
import pytest


class Systems(dict[str, Any]):
    """Systems by architecture, each made when it is first asked for."""

    def __missing__(self, architecture: str) -> Any:
        self[architecture] = models.tiny_system(architecture)
        return self[architecture]


@pytest.fixture(scope="module")
def systems() -> Systems:
    return Systems()
