"""Local lm-eval task files: read as plain data, and refused where lm-eval would run code for them.

lm-eval looks a metric that it does not know up in the `evaluate` library, which runs the script of that name; so every
name in a file must be in lm-eval's own registries, and data comes in formats that hold no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import UnknownNameError
from sparsebench.yaml_source import Place, YamlSource, read_yaml

CODE = frozenset(
    {"class", "custom_dataset", "process_docs", "process_results", "unsafe_code", "doc_to_image", "doc_to_audio"}
)
"""Keys whose values are functions, or name code."""
READERS = frozenset({"json", "csv", "parquet", "text"})
"""Formats of `datasets` that a file may name as its `dataset_path`; of its other readers some unpickle."""
DATA_KEYS = frozenset(
    {"data_files", "data_dir", "revision", "split", "field", "sep", "delimiter", "column_names", "encoding"}
)
"""What `dataset_kwargs` may hold; options of file systems and `trust_remote_code` can run code."""
DATA_PLACES = re.compile(r"(?:(?:https?|hf)://)?(?:(?!::|://).)+")
"""A path, or an address of the web or the hub; other file systems and chains of them (`::`) take code as options."""


def local_config(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The configuration of a local task file with what it includes; it is plain data, so no code is run.

    Raises:
        InputError: It cannot be read, has a tag such as `!function`, names code, or is no single task.
    """
    source = read_yaml(path)
    if not isinstance(source.data, dict):
        raise source.error((), "an lm-eval task is a mapping of keys")
    _refuse_code(source)
    here = path.resolve()
    if here in including:
        raise source.error(("include",), "the file includes itself")
    own = {key: value for key, value in source.data.items() if key != "include"}
    included: dict[str, Any] = {}
    named = source.data.get("include", [])
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str):
            raise source.error(("include",), "a file's name, or a list of them")
        included |= local_config(path.parent / name, (*including, here))
    config = {**included, **own}
    if not including and not isinstance(config.get("task"), str):
        raise source.error((), "an lm-eval task file needs `task:`, a name")
    return config


def _refuse_code(source: YamlSource) -> None:
    """Refuse every key and name of a file for which lm-eval would run code that is not its own."""
    for key in source.data:
        if key in CODE and source.data[key] not in (None, False):
            what = "a class" if key == "class" else f"`{key}`"
            raise source.error((key,), f"{what} would run code", "write the task without it")
    if source.data.get("use_prompt") is not None:
        raise source.error(("use_prompt",), "prompts of other files and packages are not read", "write `doc_to_text`")
    _check_metrics(source)
    _check_filters(source)
    _check_fewshot(source)
    _check_data(source)


def _check_metrics(source: YamlSource) -> None:
    import lm_eval.api.metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import aggregation_registry, metric_registry

    for place, entry in _entries(source, ("metric_list",), source.data.get("metric_list")):
        if "hf_evaluate" in entry:
            raise source.error(
                (*place, "hf_evaluate"),
                "metrics of the `evaluate` library run scripts",
                "name one of lm-eval's own metrics",
            )
        _check_name(source, (*place, "metric"), "lm-eval metric", entry.get("metric"), metric_registry)
        if "aggregation" in entry:
            given = entry["aggregation"]
            _check_name(source, (*place, "aggregation"), "lm-eval aggregation", given, aggregation_registry)


def _check_filters(source: YamlSource) -> None:
    import lm_eval.filters  # noqa: F401  (registers them)
    from lm_eval.api.registry import filter_registry

    known = set(filter_registry) - {"custom"}  # which takes a function
    for place, entry in _entries(source, ("filter_list",), source.data.get("filter_list")):
        for inner, step in _entries(source, (*place, "filter"), entry.get("filter")):
            _check_name(source, (*inner, "function"), "lm-eval filter", step.get("function"), known)


def _check_fewshot(source: YamlSource) -> None:
    from lm_eval.api.samplers import SAMPLER_REGISTRY

    fewshot = source.data.get("fewshot_config")
    if fewshot is None:
        return
    if not isinstance(fewshot, dict):
        raise source.error(("fewshot_config",), "a mapping of keys")
    if fewshot.get("process_docs") is not None:
        raise source.error(("fewshot_config", "process_docs"), "`process_docs` would run code")
    if "sampler" in fewshot:
        place = ("fewshot_config", "sampler")
        _check_name(source, place, "lm-eval sampler", fewshot["sampler"], SAMPLER_REGISTRY)


def _of_the_hub(path: str) -> bool:
    """Whether a name is a path, or of the hub and none of the readers of `datasets`, of which some unpickle."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as READ_BY_DATASETS

    return bool(re.search(r"[/\\]", path)) or (path not in READ_BY_DATASETS and not path.endswith(".py"))


def _check_data(source: YamlSource) -> None:
    path = source.data.get("dataset_path")
    if path is not None and not (isinstance(path, str) and (path in READERS or _of_the_hub(path))):
        hint = f"{', '.join(sorted(READERS))} with `data_files`, or a data set of the hub as org/name"
        raise source.error(("dataset_path",), f"{path!r} is no format of data that holds no code", hint)
    if isinstance(path, str):
        _check_place(source, ("dataset_path",), path)
    kwargs = source.data.get("dataset_kwargs")
    if kwargs is None:
        return
    if not isinstance(kwargs, dict):
        raise source.error(("dataset_kwargs",), "a mapping of keys")
    for key, value in kwargs.items():
        place = ("dataset_kwargs", key)
        if key not in DATA_KEYS:
            raise source.error(place, "not allowed in a local task", f"it may have {', '.join(sorted(DATA_KEYS))}")
        if key in ("data_files", "data_dir"):
            for text in _texts(value):
                _check_place(source, place, text)


def _check_place(source: YamlSource, place: Place, text: str) -> None:
    if not DATA_PLACES.fullmatch(text):
        raise source.error(place, f"{text!r} is no path and no https:// or hf:// address")


def _texts(value: Any) -> Iterable[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _entries(source: YamlSource, place: Place, value: Any) -> Iterable[tuple[Place, dict[str, Any]]]:
    """The mappings of a list, with their places."""
    if value is None:
        return
    if not isinstance(value, list):
        raise source.error(place, "a list")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise source.error((*place, number), "a mapping of keys")
        yield (*place, number), entry


def _check_name(source: YamlSource, place: Place, kind: str, name: Any, known: Iterable[str]) -> None:
    if not isinstance(name, str) or name not in set(known):
        wrong = UnknownNameError(kind, name, known)
        raise source.error(place, wrong.message, wrong.hint)
