"""What every task has: bound to a tokenizer it has rows, and evaluated on a system it gives one row a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparsebench.errors import InputError
from sparsebench.metrics import Metric
from sparsebench.records import DataFact, TaskSpec

if TYPE_CHECKING:
    import pandas as pd

    from sparsebench.systems.base import System
    from sparsebench.tasks.definition import TaskDefinition


@dataclass(frozen=True)
class Workload:
    """Tokens that evaluating a task costs, for predictions.

    Attributes:
        samples: Samples.
        prefill: Prompt tokens, common beginnings counted once.
        decode: Generated tokens at most.
        scored: Positions whose logits are needed.
        length: Typical length of a sequence.
        counted: Sequences that the counters count; None: the samples.
    """

    samples: int
    prefill: int = 0
    decode: int = 0
    scored: int = 0
    length: int = 0
    counted: int | None = None


@dataclass
class TaskResult:
    """What evaluating gives.

    Attributes:
        samples: One row a sample; columns as in docs/architecture.md.
        facts: Facts of the run (windows, tokens counted, truncated prompts).
    """

    samples: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


class BoundTask(ABC):
    """A task with its rows at hand."""

    spec: TaskSpec
    metrics: list[Metric]
    family: str
    title: str
    protocol: str
    """Which parts run as prefill and as decode: `prompt`, `context`, `window`."""
    data: list[DataFact]
    workload: Workload
    notes: tuple[str, ...] = ()
    """What is odd about the data, for whoever runs the task."""
    times: ClassVar[bool] = False
    """Whether the task times a system: then a method must really skip work."""

    def observe(self, system: System) -> None:
        """See the dense system before a method is attached to it; what is to be kept goes to `system.memory`."""
        return

    @abstractmethod
    def evaluate(self, system: System) -> TaskResult:
        """Run the task on a system, with whatever is attached to it."""


class Task(ABC):
    """A task by name."""

    id: str
    kind: str
    """Kind of systems it runs on: `lm` or `retrieval`."""
    title: str
    family: str

    @abstractmethod
    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundTask:
        """Load the rows; those of some tasks depend on the tokenizer.

        Raises:
            MissingError: The data is not to be had.
        """

    def seeded(self, seed: int) -> Task:
        """The task with samples and few-shot examples that another seed draws; `seed` is a suite's, and not 0.

        Raises:
            InputError: It does not say how it follows a seed.
        """
        raise InputError(
            f"task {self.id} does not follow a suite's seed", "leave out `seed`, or write the task's method `seeded`"
        )


class DefinedTask(Task):
    """A task of a definition.

    Args:
        definition: What it is.
    """

    kind = "lm"

    def __init__(self, definition: TaskDefinition) -> None:
        self.definition = definition
        self.id, self.title, self.family = definition.task, definition.title, definition.family

    def seeded(self, seed: int) -> Task:
        """See `Task.seeded`."""
        return type(self)(self.definition.model_copy(update={"seed": self.definition.seed + seed}))
