"""Tasks by name: those of the package, a YAML file, lm-eval's, and other packages' entry points."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.yaml_source import YamlSource, parse_yaml, read_yaml, validate

if TYPE_CHECKING:
    from sparsebench.tasks.base import Task

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


def names() -> list[str]:
    """Tasks of the package and of plugins; any lm-eval task is there as `lm-eval:NAME` beside them."""
    return sorted({*_texts(), *(point.name for point in entry_points(group=GROUP))})


def definitions() -> list[TaskDefinition]:
    """Definitions of the package's tasks."""
    return [_defined(parse_yaml(text, f"{name}.yaml")) for name, text in sorted(_texts().items())]


def get(name: str) -> Task:
    """A task by name, by the path of a `.yaml` file, or lm-eval's by `lm-eval:NAME`.

    Raises:
        UnknownNameError: No such task.
        InputError: A definition that is wrong.
    """
    if name.startswith(LM_EVAL):
        from sparsebench.tasks.lm_eval_tasks import LmEvalTask

        return LmEvalTask(name.removeprefix(LM_EVAL))
    if name in _texts():
        return _task(_defined(parse_yaml(_texts()[name], f"{name}.yaml")))
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


def _defined(source: YamlSource) -> TaskDefinition:
    if not isinstance(source.data, dict):
        raise source.error((), "a task is a mapping of keys")
    return validate(TaskDefinition, source)


def _task(definition: TaskDefinition) -> Task:
    if definition.type == "perplexity":
        from sparsebench.tasks.perplexity import PerplexityTask

        return PerplexityTask(definition)
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
