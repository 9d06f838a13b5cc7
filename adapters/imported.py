"""Which files of its own package a module needs, read from its text: nothing is imported to find out.

Imports within functions count, since methods import what is heavy late. Other packages do not: versions say what they
are. A module that is named by a string, or that lies beside the package, is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from importlib.util import find_spec, resolve_name
from pathlib import Path


def files_of(module: str) -> dict[str, Path]:
    """A module and all of its package that it imports, directly or through others: names to files.

    Args:
        module: Its dotted name; its package, or the module itself if it is in none, can be imported.
    """
    top = module.partition(".")[0]
    roots = _roots(top)
    found: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        if name in found or name.partition(".")[0] != top or (file := _file(name, roots)) is None:
            continue
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        left += _imports(file, package)
    return found


def _roots(top: str) -> Sequence[Path]:
    """The folders of a package; for a module that is in none, the folder that it lies in."""
    try:
        spec = find_spec(top)
    except ValueError:  # a script, or a module that was made by hand
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def _file(name: str, roots: Sequence[Path]) -> Path | None:
    """The file of a module; None where it is none of Python, or not there."""
    parts = name.split(".")[1:]
    for root in roots:
        if root.is_file():
            return root if not parts and root.suffix == ".py" else None
        place = root.joinpath(*parts)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py") if parts else place):
            if file.is_file():
                return file
    return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Names that a file imports and that may be modules."""
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError):  # who imports it sees the error
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = (
                    resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
                )
            except ImportError:  # beyond the package: it would not import either
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
