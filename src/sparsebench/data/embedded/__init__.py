"""Data sets that need no download beyond small packages.

Each is deterministic for one version of Python and of the packages it reads; the content hash of its rows says which.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from sparsebench.errors import UnknownNameError

#: name: module that has `rows()` and `VERSION`. Samples of exact length are missing: they depend on a tokenizer.
MODULES = {
    "documentation": "sparsebench.data.embedded.docs_collection",
    "facts": "sparsebench.data.embedded.facts",
    "prose": "sparsebench.data.embedded.prose",
}


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of an embedded data set.

    Raises:
        UnknownNameError: There is none of that name.
        MissingError: A package that it reads is not to be had.
    """
    make: Callable[[], list[dict[str, Any]]] = _module(name).rows
    return make()


def version(name: str) -> str:
    """The version of how an embedded data set is made; it changes when its rows would."""
    return str(_module(name).VERSION)


def _module(name: str) -> Any:
    if name not in MODULES:
        raise UnknownNameError("embedded data set", name, MODULES)
    return import_module(MODULES[name])
