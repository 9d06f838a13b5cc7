"""Puts this folder on the path, so that tests can `import models`; and leaves out methods of other packages."""

from collections.abc import Callable

import pytest

from sparsebench import adapters
from sparsebench.adapters import registry
from sparsebench.adapters.base import Adapter

# Those that happen to be installed are theirs to test: `sparsebench conform`.
registry._plugins = dict


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Adapter]], None]:
    """Makes a class the method `outside`."""
    get = registry.get

    def install(method: type[Adapter]) -> None:
        monkeypatch.setattr(adapters, "get", lambda name: method if name == "outside" else get(name))

    return install
