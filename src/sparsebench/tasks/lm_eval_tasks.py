"""Any lm-eval task, built in or a local YAML, run by the engine and kept sample by sample."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.identity import digest
from sparsebench.metrics import Metric
from sparsebench.records import DataFact, TaskSpec
from sparsebench.tasks.base import BoundTask, Task, TaskResult, Workload
from sparsebench.tasks.lm_eval_files import local_config

if TYPE_CHECKING:
    from jinja2 import Template

    from sparsebench.tasks.templates import BoundedEnvironment

RATIOS = {"word_perplexity": True, "byte_perplexity": True, "bits_per_byte": False}
"""lm-eval's metrics over (log-likelihood, count) pairs, and whether they are exponentials."""
ELSEWHERE = frozenset({"metadata", "dataset_kwargs"})
"""Parts of a task's configuration that name places on a machine; version and requests have hashes of their own."""
FEWSHOT_SEED = 1234
"""lm-eval's own default."""


class LmEvalTask(Task):
    """One lm-eval task.

    Args:
        name: A task of lm-eval, or the path of a local task YAML.
        seed: A suite's, for the choice of few-shot examples.
    """

    kind = "lm"
    family = "lm-eval"

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.seed = seed
        self.id = f"lm-eval:{name}"
        self.title = name

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundLmEvalTask:
        """Load the task's documents."""
        return BoundLmEvalTask(self.id, _load(self.name), limit, FEWSHOT_SEED + self.seed)

    def seeded(self, seed: int) -> LmEvalTask:
        """See `Task.seeded`: other few-shot examples; of documents lm-eval takes the first ones, whatever the seed."""
        return LmEvalTask(self.name, self.seed + seed)


class _Bounded:
    """What lm-eval asks of an environment of Jinja."""

    def __init__(self, regex_replace: Callable[..., str]) -> None:
        from sparsebench.tasks.templates import BoundedEnvironment

        self._environment = BoundedEnvironment(nulls=True)
        self._environment.filters["regex_replace"] = regex_replace

    def from_string(self, source: str) -> _Template:
        """A template with bounds of work and of length."""
        return _Template(self._environment, self._environment.template(source))


@dataclass(frozen=True)
class _Template:
    environment: BoundedEnvironment
    template: Template

    def render(self, **document: Any) -> str:
        """The text that it makes of a document."""
        return self.environment.text(self.template, document)


@contextmanager
def _working(local: bool) -> Iterator[None]:
    """Within the context lm-eval is quiet, and the templates of a local task are rendered in a bounded sandbox."""
    from lm_eval import utils

    logger = logging.getLogger("lm_eval")
    level, own = logger.level, utils.env
    logger.setLevel(logging.ERROR)
    if local:
        utils.env = _Bounded(own.filters["regex_replace"])
    try:
        yield
    finally:
        utils.env = own
        logger.setLevel(level)


@cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _is_local(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _load(name: str) -> Any:
    """A fresh task object: lm-eval keeps requests and responses in it."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import get_task_dict

    with _working(_is_local(name)):
        if _is_local(name):
            config = local_config(Path(name))
        elif name not in _manager().all_tasks:
            raise UnknownNameError("lm-eval task", name, _manager().all_tasks)
        try:
            found = {name: ConfigurableTask(config=config)} if _is_local(name) else get_task_dict([name], _manager())
        except OSError as error:
            raise MissingError(
                f"lm-eval task {name}: its data is not to be had: {_first_line(error)}",
                "data of lm-eval's own tasks comes from the hub; run where the hub can be reached",
            ) from error
        except Exception as error:  # whatever a wrong configuration or damaged data makes lm-eval raise
            raise InputError(f"lm-eval task {name} does not load: {_first_line(error)}") from error
    (task,) = found.values() if len(found) == 1 else (None,)
    if not hasattr(task, "build_all_requests"):
        raise InputError(f"lm-eval:{name} is a group of tasks", "name its tasks one by one")
    return task


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class BoundLmEvalTask(BoundTask):
    """An lm-eval task with its requests built once for all systems."""

    protocol = "prompt"
    family = "lm-eval"

    def __init__(self, identifier: str, task: Any, limit: int | None, fewshot_seed: int) -> None:
        self.task, self.fewshot_seed = task, fewshot_seed
        self.title = str(task.config.task)
        self.local = _is_local(identifier)
        try:
            with _working(self.local):
                task.set_fewshot_seed(fewshot_seed)
                task.build_all_requests(limit=limit, rank=0, world_size=1)
        except Exception as error:  # whatever templates raise, and lm-eval without a document
            raise InputError(f"{identifier}: its requests cannot be built: {_first_line(error)}") from error
        self.instances = list(task.instances)
        self._aggregations = {str(n): f for n, f in task.aggregation().items()}
        better = task.higher_is_better()
        chance = _chance(task, self.instances)
        self.metrics = [
            _metric(name, bool(better.get(name, True)), i == 0, chance.get(name))
            for i, name in enumerate(self._columns())
        ]
        if not self.metrics:
            raise InputError(
                f"{identifier} has no metric that is a mean over documents", f"it has {', '.join(self._aggregations)}"
            )
        documents = {i.doc_id: i.doc for i in self.instances}
        requests = [[i.request_type, *_plain(i.args)] for i in self.instances]
        if self.local:  # no request holds the right answers: metrics and filters read them in the documents
            requests.append([_plain(document) for document in documents.values()])
        hashed = content_hash([json.dumps(r, ensure_ascii=False) for r in requests])
        config = {k: v for k, v in task.config.to_dict().items() if k not in ELSEWHERE}
        defined = digest(json.loads(json.dumps(config, default=_name_of, sort_keys=True)))[:16]
        self.data = [DataFact(name=identifier, source=f"lm-eval:{task.DATASET_PATH or ''}", sha256=hashed)]
        version = task.VERSION if isinstance(task.VERSION, int | float) else 0
        self.spec = TaskSpec(id=identifier, version=int(version), definition=defined, data=hashed, limit=limit)
        characters = sum(len(str(i.args[0])) for i in self.instances)
        generated = sum(
            int(i.args[1].get("max_gen_toks", 256)) for i in self.instances if i.request_type == "generate_until"
        )
        self.workload = Workload(
            len(documents), characters // 4, generated, len(self.instances), characters // 4 // len(self.instances)
        )

    def _columns(self) -> list[str]:
        return [name for name in self._aggregations if name in RATIOS or _is_mean(self._aggregations[name])]

    def evaluate(self, system: Any) -> TaskResult:
        """Answer every request, then let the task score each document."""
        from sparsebench.engine.lm import SparseLM

        lm = SparseLM.of(system)
        by_type: dict[str, list[Any]] = defaultdict(list)
        for instance in self.instances:
            instance.resps, instance.filtered_resps = [], {}
            by_type[instance.request_type].extend([instance] * (instance.repeats or 1))
        for kind, requests in by_type.items():
            for instance, response in zip(requests, getattr(lm, kind)(requests), strict=True):
                instance.resps.append(response)
        with _working(self.local):
            return self._scored(lm.truncated)

    def _scored(self, truncated: int) -> TaskResult:
        """The task's own scores of the responses that its requests hold."""
        import pandas as pd

        self.task.apply_filters()
        by_document: dict[int, list[Any]] = defaultdict(list)
        for instance in self.instances:
            by_document[int(instance.doc_id or 0)].append(instance)
        filters = list(self.instances[0].filtered_resps)
        rows = [self._row(number, instances, filters[0]) for number, instances in sorted(by_document.items())]
        facts = {"filter": filters[0], "fewshot_seed": self.fewshot_seed}
        return TaskResult(pd.DataFrame(rows), facts | ({"truncated": truncated} if truncated else {}))

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
                row[metric.column] = _number(value)
        row["response"] = json.dumps(_plain(responses), ensure_ascii=False)
        row["target"] = str(self.task.doc_to_target(instances[0].doc))
        return row


def _is_mean(aggregation: Any) -> bool:
    return getattr(aggregation, "__name__", "") in ("mean", "nanmean")


def _chance(task: Any, instances: list[Any]) -> dict[str, float]:
    """What guessing reaches, by metric: one of the choices that a document has; nothing for a text of one's own."""
    if task.OUTPUT_TYPE == "generate_until":
        return {"exact_match": 0.0}
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    documents = {instance.doc_id: instance.doc for instance in instances}.values()
    choices = [len(task.doc_to_choice(document)) for document in documents]
    guessed = sum(1 / count for count in choices if count) / len(choices)
    return dict.fromkeys(("acc", "acc_norm", "acc_bytes"), guessed)


def _metric(name: str, higher: bool, headline: bool, chance: float | None) -> Metric:
    binary = name in ("acc", "acc_norm", "acc_bytes", "exact_match")
    return Metric(
        name=name,
        column=name,
        kind="binary" if binary else "continuous",
        transform="exp" if RATIOS.get(name) else "identity",
        higher_is_better=higher,
        headline=headline,
        chance=chance,
    )


def _name_of(value: Any) -> str:
    """A function's or a class's name: its `str` may hold an address."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _plain(value: Any) -> Any:
    """Tuples and objects as JSON has them."""
    return json.loads(json.dumps(value, default=str))
