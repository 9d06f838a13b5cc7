"""YAML with a memory of its lines, and validation errors that name file, line, key and the nearest valid name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sparsebench.errors import InputError, SparseBenchError

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]
LARGEST = 100_000
"""Values in a file at most."""
COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))


@dataclass(frozen=True)
class YamlSource:
    """A parsed YAML file.

    Attributes:
        name: The file, for messages.
        data: Its content as plain data.
        lines: Line of each key and item, counted from 1, by its place in the content.
    """

    name: str
    data: Any
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest place around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def error(self, place: Place, message: str, hint: str | None = None) -> InputError:
        """An error at a place."""
        return _error(self.name, self.line(place), place, message, hint)


def _error(name: str, line: int, place: Place, message: str, hint: str | None) -> InputError:
    key = "".join(f"{part}." for part in place)[:-1]
    return InputError(f"{name}:{line}: {key + ': ' if key else ''}{message}", hint)


def parse_yaml(text: str, name: str) -> YamlSource:
    """Parse one YAML document; only plain data: no tags, no merge keys, no duplicate keys, finite numbers.

    Raises:
        InputError: It is not YAML, or not plain data; the message has file and line.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = _Plain(name)
        data = plain.of(node, ()) if node is not None else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{name}:{line}: not YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise InputError(f"{where}: not YAML: {error.problem or error.context}") from None
    except (ValueError, OverflowError) as error:  # an escape that is no character
        raise InputError(f"{name}: not YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{name}: not YAML: nested too deeply") from None
    return YamlSource(name, data, plain.lines)


def read_yaml(path: Path) -> YamlSource:
    """Parse a file.

    Raises:
        InputError: It cannot be read or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except ValueError as error:  # no path at all: a null character
        raise InputError(f"cannot read {str(path)!r}: {error}") from None


def validate(model: type[M], source: YamlSource, data: Any = None, at: Place = ()) -> M:
    """`data` (default: the whole file) as `model`.

    Raises:
        InputError: It does not fit; the message has file, line, key and, for a wrong name, the nearest valid one.
    """
    try:
        return model.model_validate(source.data if data is None else data)
    except ValidationError as error:
        raise _first_error(model, source, error, at) from None


def _first_error(model: type[BaseModel], source: YamlSource, error: ValidationError, at: Place) -> InputError:
    # A mistyped key is both unknown and missing: the first says more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = (*at, *_real_place(source, at, first["loc"]))
    if first["type"] == "extra_forbidden":
        valid = sorted(_fields_at(model, first["loc"][:-1]))
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return source.error(place, "no such key", hint)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SparseBenchError):
        return source.error(place, cause.message, cause.hint)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return source.error(place, f"{message[0].lower()}{message[1:]}{shown}")


def _real_place(source: YamlSource, at: Place, loc: Place) -> Place:
    """Pydantic puts names of union members into a location; only what is really in the file stays."""
    place: Place = ()
    data = source.data
    for part in at:
        data = data[part]
    for part in loc:
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif part != loc[-1]:
            continue
        place = (*place, part)
    return place


def _fields_at(model: type[BaseModel], loc: Place) -> set[str]:
    current: list[type[BaseModel]] = [model]
    for part in loc:
        following = [
            m for c in current if str(part) in c.model_fields for m in _models_in(c.model_fields[str(part)].annotation)
        ]
        current = following or current
    return {name for c in current for name in c.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


class _Plain:
    """Nodes as plain data, with their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Place, int] = {}
        self.nodes = 0
        self.loader = yaml.SafeLoader("")

    def of(self, node: yaml.Node, place: Place) -> Any:
        """The data of a node at a place."""
        self.nodes += 1
        if self.nodes > LARGEST:
            raise self.error(node, place, f"more than {LARGEST:,} values", "aliases that refer to aliases multiply")
        self.lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        if node.tag not in COLLECTIONS:
            raise self.error(node, place, f"the tag {node.tag!r} is not allowed")
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, (*place, i)) for i, item in enumerate(node.value)]
        data: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, place, "a key must be plain text")
            key = self.scalar(key_node, place)
            if key in data:
                raise self.error(key_node, (*place, key), "the key stands twice")
            self.lines[(*place, key)] = key_node.start_mark.line + 1
            data[key] = self.of(value_node, (*place, key))
        return data

    def scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        """The value of a scalar."""
        if node.tag not in SCALARS:
            if node.tag.startswith("!"):
                raise self.error(node, place, f"the tag {node.tag} is not allowed", "this is data; it runs no code")
            kind = node.tag.rpartition(":")[2]
            raise self.error(node, place, f"{node.value!r} is read as {kind!r}", "put text into quotes")
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, str):
                value.encode()  # a lone surrogate is no text
        except (yaml.YAMLError, ValueError) as error:
            raise self.error(node, place, str(error)) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(node, place, f"{node.value} is no finite number")
        return value

    def error(self, node: yaml.Node, place: Place, message: str, hint: str | None = None) -> InputError:
        """An error at a node."""
        return _error(self.name, node.start_mark.line + 1, place, message, hint)
