"""Any lm-eval task, built in or a local YAML, run by the engine and kept sample by sample."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.identity import digest
from sparsebench.metrics import Metric
from sparsebench.records import DataFact, TaskSpec
from sparsebench.tasks.base import BoundTask, Task, TaskResult, Workload

RATIOS = {"word_perplexity": True, "byte_perplexity": True, "bits_per_byte": False}
"""lm-eval's metrics over (log-likelihood, count) pairs, and whether they are exponentials."""


class LmEvalTask(Task):
    """One lm-eval task.

    Args:
        name: A task of lm-eval, or the path of a local task YAML.
    """

    kind = "lm"
    family = "lm-eval"

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = f"lm-eval:{name}"
        self.title = name

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundLmEvalTask:
        """Load the task's documents."""
        return BoundLmEvalTask(self.id, _load(self.name), limit)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def _load(name: str) -> Any:
    from lm_eval.tasks import TaskManager, get_task_dict

    local = name.endswith((".yaml", ".yml"))
    with _quiet():
        if local:
            path = Path(name)
            if not path.exists():
                raise MissingError(f"no lm-eval task file {name}")
            _refuse_code(path)
            manager = TaskManager(include_path=str(path.parent), include_defaults=False)
            name = _task_name(path)
        else:
            manager = TaskManager()
        if name not in manager.all_tasks:
            raise UnknownNameError("lm-eval task", name, manager.all_tasks)
        try:
            found = get_task_dict([name], manager)
        except (ConnectionError, OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise MissingError(f"lm-eval task {name}: its data is not to be had: {first}",
                               "it comes from the hub; run where the hub can be reached") from error  # fmt: skip
    if len(found) != 1 or not hasattr(next(iter(found.values())), "build_all_requests"):
        raise InputError(f"lm-eval:{name} is a group of tasks", "name its tasks one by one")
    return next(iter(found.values()))


def _refuse_code(path: Path) -> None:
    if "!function" in path.read_text(encoding="utf-8"):
        raise InputError(f"{path}: !function would run code of that file's folder", "write the task without it")


def _task_name(path: Path) -> str:
    from sparsebench.yaml_source import read_yaml

    source = read_yaml(path)
    name = source.data.get("task") if isinstance(source.data, dict) else None
    if not isinstance(name, str):
        raise source.error((), "an lm-eval task file needs `task:`, a name")
    return name


class BoundLmEvalTask(BoundTask):
    """An lm-eval task with its requests built once for all systems."""

    protocol = "prompt"
    family = "lm-eval"

    def __init__(self, identifier: str, task: Any, limit: int | None) -> None:
        self.task = task
        self.title = str(task.config.task)
        with _quiet():
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        self.instances = list(task.instances)
        if not self.instances:
            raise InputError(f"{identifier} has no documents")
        self._aggregations = {str(n): f for n, f in task.aggregation().items()}
        better = task.higher_is_better()
        self.metrics = [_metric(name, bool(better.get(name, True)), i == 0) for i, name in enumerate(self._columns())]
        documents = {i.doc_id: i.doc for i in self.instances}
        requests = [[i.request_type, *_plain(i.args)] for i in self.instances]
        hashed = content_hash([json.dumps(r, ensure_ascii=False) for r in requests])
        config = {k: v for k, v in task.config.to_dict().items() if isinstance(v, str | int | float | list | dict)}
        defined = digest(json.loads(json.dumps(config, default=str, sort_keys=True)))[:16]
        self.data = [DataFact(name=identifier, source=f"lm-eval:{task.DATASET_PATH or ''}", sha256=hashed)]
        version = task.VERSION if isinstance(task.VERSION, int | float) else 0
        self.spec = TaskSpec(id=identifier, version=int(version), definition=defined, data=hashed, limit=limit)
        characters = sum(len(str(i.args[0])) for i in self.instances)
        generated = sum(int(i.args[1].get("max_gen_toks", 256)) for i in self.instances if i.request_type == "generate_until")
        self.workload = Workload(len(documents), characters // 4, generated, len(self.instances), characters // 4 // len(self.instances))  # fmt: skip

    def _columns(self) -> list[str]:
        return [name for name in self._aggregations if name in RATIOS or _is_mean(self._aggregations[name])]

    def evaluate(self, system: Any) -> TaskResult:
        """Answer every request, then let the task score each document."""
        import pandas as pd

        from sparsebench.engine.lm import SparseLM

        lm = system.memory.get("lm") or SparseLM(system)
        system.memory["lm"] = lm
        lm.context_field = None
        by_type: dict[str, list[Any]] = defaultdict(list)
        for instance in self.instances:
            instance.resps, instance.filtered_resps = [], {}
            by_type[instance.request_type].extend([instance] * (instance.repeats or 1))
        for kind, requests in by_type.items():
            for instance, response in zip(requests, getattr(lm, kind)(requests), strict=True):
                instance.resps.append(response)
        self.task.apply_filters()
        by_document: dict[int, list[Any]] = defaultdict(list)
        for instance in self.instances:
            by_document[int(instance.doc_id or 0)].append(instance)
        filters = list(self.instances[0].filtered_resps)
        rows = [self._row(number, instances, filters[0]) for number, instances in sorted(by_document.items())]
        return TaskResult(pd.DataFrame(rows), {"filter": filters[0]})

    def _row(self, number: int, instances: list[Any], key: str) -> dict[str, Any]:
        instances = sorted(instances, key=lambda i: int(i.idx))
        responses = [i.filtered_resps[key] for i in instances]
        scores = self.task.process_results(instances[0].doc, responses)
        row: dict[str, Any] = {"sample": str(number), "cluster": str(number)}
        for metric in self.metrics:
            value = scores.get(metric.name)
            if metric.name in RATIOS and value is not None:
                scale = math.log(2) if metric.name == "bits_per_byte" else 1.0
                row[metric.column], row[metric.weight] = -float(value[0]) / scale, float(value[1])
            else:
                row[metric.column] = float(value) if isinstance(value, int | float | bool) else math.nan
        row["response"] = json.dumps(_plain(responses), ensure_ascii=False)
        row["target"] = str(self.task.doc_to_target(instances[0].doc))
        return row


def _is_mean(aggregation: Any) -> bool:
    return getattr(aggregation, "__name__", "") in ("mean", "nanmean")


def _metric(name: str, higher: bool, headline: bool) -> Metric:
    binary = name in ("acc", "acc_norm", "acc_bytes", "exact_match")
    return Metric(
        name=name,
        column=name,
        kind="binary" if binary else "continuous",
        transform="exp" if RATIOS.get(name) else "identity",
        higher_is_better=higher,
        headline=headline,
    )


def _plain(value: Any) -> Any:
    """Tuples and objects as JSON has them."""
    return json.loads(json.dumps(value, default=str))
