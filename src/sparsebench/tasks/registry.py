"""Tasks by name: those of the package, a YAML file, lm-eval's, and other packages' entry points."""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.yaml_source import YamlSource, parse_yaml, read_yaml, validate

if TYPE_CHECKING:
    from sparsebench.tasks.base import BoundTask, Task

GROUP = "sparsebench.tasks"
LM_EVAL = "lm-eval:"


@cache
def _texts() -> dict[str, str]:
    folder = files("sparsebench.suites").joinpath("tasks")
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".yaml"):
            found[file.name.removesuffix(".yaml")] = file.read_text(encoding="utf-8")
    return found


@cache
def _sources() -> dict[str, YamlSource]:
    return {name: parse_yaml(text, f"{name}.yaml") for name, text in _texts().items()}


def _lengths(source: YamlSource) -> list[int]:
    """The lengths at which a file lists its task; none where it is made for no length."""
    found = source.data.get("lengths") if isinstance(source.data, dict) else None
    return [length for length in found if isinstance(length, int)] if isinstance(found, list) else []


def parted(name: str) -> tuple[str, int] | None:
    """`needle-2048` as `("needle", 2048)`; None unless it names a task of the package that is made for a length."""
    base, _, length = name.rpartition("-")
    if base not in _sources() or not re.fullmatch(r"[1-9][0-9]{0,6}", length) or not _lengths(_sources()[base]):
        return None
    return base, int(length)


def names() -> list[str]:
    """Tasks of the package and of plugins; any lm-eval task is there as `lm-eval:NAME` beside them.

    Tasks that are made for a length are there at the lengths at which they are listed; any other will do as well.
    """
    return sorted({*(name for name, _, _ in _listed()), *(point.name for point in entry_points(group=GROUP))})


def definitions() -> list[TaskDefinition]:
    """Definitions of the package's tasks, at each length at which one is listed."""
    return [_defined(source, length) for _, source, length in sorted(_listed(), key=lambda listed: listed[0])]


def _listed() -> list[tuple[str, YamlSource, int | None]]:
    """The package's tasks by name, with their files and lengths."""
    found: list[tuple[str, YamlSource, int | None]] = []
    for name, source in _sources().items():
        lengths = _lengths(source)
        found += [(f"{name}-{length}", source, length) for length in lengths] or [(name, source, None)]
    return found


def get(name: str) -> Task:
    """A task by name, by the path of a `.yaml` file, or lm-eval's by `lm-eval:NAME`.

    Raises:
        UnknownNameError: No such task.
        InputError: A definition that is wrong.
    """
    if name.startswith(LM_EVAL):
        from sparsebench.tasks.lm_eval_tasks import LmEvalTask

        return LmEvalTask(name.removeprefix(LM_EVAL))
    if made_for := parted(name):
        return _task(_defined(_sources()[made_for[0]], made_for[1]))
    if name in _sources() and not _lengths(_sources()[name]):
        return _task(_defined(_sources()[name]))
    if name.endswith((".yaml", ".yml")):
        return _task(_defined(read_yaml(Path(name))))
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                loaded = point.load()()
            except Exception as error:
                raise InputError(f"task plugin {name!r} ({point.value}) does not load: {error}") from error
            return _task(loaded) if isinstance(loaded, TaskDefinition) else loaded
    raise UnknownNameError("task", name, names())


def bind(name: str, tokenizer: Any, limit: int | None = None, seed: int = 0) -> BoundTask:
    """A task with its rows; `seed` is a suite's, which other samples and few-shot examples are drawn with.

    Raises:
        InputError: Also where a task does not follow a seed that is not 0.
    """
    task = get(name)
    return (task.seeded(seed) if seed else task).bind(tokenizer, limit)


def _defined(source: YamlSource, length: int | None = None) -> TaskDefinition:
    """The definition in a file; at a length, or the first of its lengths, where it is made for one."""
    if not isinstance(source.data, dict):
        raise source.error((), "a task is a mapping of keys")
    wanted = length or next(iter(_lengths(source)), None)
    return validate(TaskDefinition, source, TaskDefinition.at_length(source.data, wanted) if wanted else None)


def _task(definition: TaskDefinition) -> Task:
    if definition.type == "perplexity":
        from sparsebench.tasks.perplexity import PerplexityTask

        return PerplexityTask(definition)
    if definition.type in ("divergence", "continuation"):
        from sparsebench.tasks.divergence import DivergenceTask

        return DivergenceTask(definition)
    if definition.type == "speed":
        from sparsebench.tasks.speed import SpeedTask

        return SpeedTask(definition)
    if definition.type == "retrieval":
        from sparsebench.tasks.retrieval import RetrievalTask

        return RetrievalTask(definition)
    from sparsebench.tasks.prompts import PromptTask

    return PromptTask(definition)


def plugin_warnings() -> None:
    """Warn of task plugins that do not load."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            warnings.warn(f"task plugin {point.name!r} left out: {error}", stacklevel=2)
