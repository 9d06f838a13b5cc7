"""What the standard library says about itself: its docstrings and the topics of its manual.

Docstrings are read from the source files, so that nothing is imported and every platform has the same ones.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from sparsebench.errors import MissingError

#: Large and without prose, or about the interpreter's own housekeeping.
_LEFT_OUT = frozenset(
    "antigravity encodings ensurepip idlelib lib2to3 pydoc_data test this tkinter turtle turtledemo".split()
)

_Kind = Literal["module", "class", "function"]


@dataclass(frozen=True)
class Docstring:
    """One docstring.

    Attributes:
        name: Qualified name, such as `asyncio.streams.StreamReader.readline`.
        module: The module's part of the name, `asyncio.streams`.
        kind: What it describes.
        text: Without common indentation.
    """

    name: str
    module: str
    kind: _Kind
    text: str


@cache
def docstrings() -> tuple[Docstring, ...]:
    """The docstrings of the standard library's modules, classes, methods and functions, by file and line.

    Raises:
        MissingError: This Python has no source files of its standard library.
    """
    found = tuple(entry for name, path in _sources() for entry in _docstrings_of(name, path))
    if not found:
        raise MissingError(
            f"{_root()} has no source files of the standard library",
            "use a Python that comes with them (on some systems they are a package of their own)",
        )
    return found


@cache
def topics() -> dict[str, str]:
    """The language reference by topic, as `help()` shows it.

    Raises:
        MissingError: This Python lacks them.
    """
    try:
        from pydoc_data.topics import topics as found
    except ImportError as error:
        raise MissingError(
            "this Python has no pydoc_data.topics", "use a Python with its whole standard library"
        ) from error
    return dict(sorted(found.items()))


def has_sources() -> bool:
    """Whether this Python has the sources of its standard library, judged by one of them."""
    return (_root() / "argparse.py").is_file()


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _sources() -> Iterator[tuple[str, Path]]:
    """Name and source file of each public module."""
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        if name.startswith("_"):
            continue
        if (file := _root() / f"{name}.py").is_file():
            yield name, file
        for file in sorted((_root() / name).rglob("*.py")):
            parts = file.relative_to(_root()).with_suffix("").parts
            if not any(part in ("test", "tests", "__main__") for part in parts):
                yield ".".join(parts).removesuffix(".__init__"), file


def _docstrings_of(module: str, path: Path) -> Iterator[Docstring]:
    tree = ast.parse(path.read_bytes())
    if text := ast.get_docstring(tree):
        yield Docstring(module, module, "module", text)
    yield from _inside(module, module, tree.body)


def _inside(module: str, owner: str, body: list[ast.stmt]) -> Iterator[Docstring]:
    """Docstrings of what a module or class defines; what a function defines inside is its own affair."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{owner}.{node.name}"
            kind: _Kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if text := ast.get_docstring(node):
                yield Docstring(name, module, kind, text)
            if isinstance(node, ast.ClassDef):
                yield from _inside(module, name, node.body)
        elif isinstance(node, ast.If | ast.Try):
            handlers = [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            yield from _inside(module, owner, [*node.body, *handlers, *node.orelse])
