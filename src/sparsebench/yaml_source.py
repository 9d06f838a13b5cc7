"""YAML with a memory of its lines, and validation errors that name file, line, key and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sparsebench.errors import InputError, SparseBenchError

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]


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
        key = ".".join(str(part) for part in place)
        return InputError(f"{self.name}:{self.line(place)}: {key + ': ' if key else ''}{message}", hint)


def parse_yaml(text: str, name: str) -> YamlSource:
    """Parse one YAML document; only plain data, no tags, no duplicate keys.

    Raises:
        InputError: It is not YAML; the message has file, line and column.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        data = _plain(node, (), lines, name) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise InputError(f"{where}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{name}: not YAML: {error or 'nested too deeply'}") from None
    return YamlSource(name, data, lines)


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
    first = error.errors()[0]
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
        following = [m for c in current if str(part) in c.model_fields for m in _models_in(c.model_fields[str(part)].annotation)]
        current = following or current
    return {name for c in current for name in c.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        data: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, name)
            line = key_node.start_mark.line + 1
            if key in data:
                raise InputError(f"{name}:{line}: {key}: the key stands twice")
            lines[(*place, key)] = line
            data[key] = _plain(value_node, (*place, key), lines, name)
        return data
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, i), lines, name) for i, item in enumerate(node.value)]
    return _scalar(node, name)


def _scalar(node: yaml.Node, name: str) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{name}:{node.start_mark.line + 1}: a key must be plain text")
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}:{node.start_mark.line + 1}: {error}") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
