"""Which adapters there are: the files of the four family folders, and other packages' entry points."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import get_args

from sparsebench.adapters.base import Adapter
from sparsebench.adapters.card import Family, MethodCard
from sparsebench.adapters.imported import files_of
from sparsebench.errors import InputError, UnknownNameError

GROUP = "sparsebench.adapters"
FAMILIES: tuple[str, ...] = get_args(Family)
KNOWN = frozenset({"sparsebench", "pydantic", "builtins", "abc", "typing"})
"""Packages of classes that a method of another package is made of, and whose versions say what they are."""
NOT_METHODS = frozenset({"base"})


@cache
def _modules() -> dict[str, str]:
    """Method id to module name, from file names alone."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        package = importlib.import_module(f"sparsebench.adapters.{family}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in NOT_METHODS and not module.name.startswith("_"):
                found[module.name.replace("_", "-")] = f"{package.__name__}.{module.name}"
    return found


@cache
def _plugins() -> dict[str, EntryPoint]:
    found = {point.name: point for point in entry_points(group=GROUP)}
    for name in found.keys() & _modules().keys():
        warnings.warn(f"adapter plugin {name!r} ({found.pop(name).value}) left out: the name is taken", stacklevel=2)
    return found


@cache
def _adapter_of(module_name: str, method: str) -> type[Adapter]:
    module = importlib.import_module(module_name)
    for _, value in inspect.getmembers(module, inspect.isclass):
        if issubclass(value, Adapter) and getattr(value, "card", None) is not None and value.card.id == method:
            return value
    raise InputError(f"{module_name} defines no adapter with the id {method!r}", "file name and card id must agree")


def _load_plugin(name: str) -> type[Adapter]:
    point = _plugins()[name]
    try:
        loaded = point.load()
    except Exception as error:
        raise InputError(f"plugin {name!r} ({point.value}) does not load: {error}") from error
    if not (inspect.isclass(loaded) and issubclass(loaded, Adapter)):
        raise InputError(f"plugin {name!r} ({point.value}) is not an Adapter class")
    if loaded.card.id != name:
        raise InputError(f"plugin {name!r} ({point.value}): its card's id is {loaded.card.id!r}", "make the two agree")
    return loaded


def ids() -> list[str]:
    """Every method's id, sorted."""
    return sorted({*_modules(), *_plugins()})


def get(name: str) -> type[Adapter]:
    """The adapter class with that id; only its own module is imported.

    Raises:
        UnknownNameError: No such method; the nearest ones are offered.
        InputError: A plugin that cannot be used.
    """
    if name in _modules():
        return _adapter_of(_modules()[name], name)
    if name in _plugins():
        return _load_plugin(name)
    raise UnknownNameError("adapter", name, ids())


@cache
def code_of(method: type[Adapter]) -> str:
    """What a method of another package is: that package with its version, and a hash of the files that make it.

    Those are the files of its class and of the classes that it is made of, with what they import of their own package.
    Empty for a method of this package: the version of its card says what it is.
    """
    files: dict[str, Path] = {}
    for kind in method.__mro__:
        if kind.__module__.partition(".")[0] not in KNOWN:
            files |= {kind.__module__: Path(inspect.getfile(kind))} | files_of(kind.__module__)
    if not files:
        return ""
    found = hashlib.sha256(b"".join(hashlib.sha256(files[name].read_bytes()).digest() for name in sorted(files)))
    return f"{' '.join(package_of(method.card.id))} {found.hexdigest()[:16]}".strip()


def package_of(name: str) -> tuple[str, str] | tuple[()]:
    """Name and version of the package that brings a method; nothing for those of this package."""
    point = _plugins().get(name) if name not in _modules() else None
    return (point.dist.name, point.dist.version) if point is not None and point.dist is not None else ()


def cards(family: str | None = None) -> list[MethodCard]:
    """Cards of all methods, by family and id. A plugin that does not load is a warning."""
    found = [_adapter_of(module, name).card for name, module in _modules().items()]
    for name in _plugins():
        try:
            found.append(_load_plugin(name).card)
        except Exception as error:
            warnings.warn(f"adapter plugin {name!r} left out: {error}", stacklevel=2)
    chosen = [card for card in found if family in (None, card.family)]
    return sorted(chosen, key=lambda card: (FAMILIES.index(card.family), card.id))
