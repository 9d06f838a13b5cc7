"""A suite: a YAML grid of cells, and what to conclude from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparsebench import adapters
from sparsebench.budget import Budget
from sparsebench.errors import FieldError
from sparsebench.iso import IsoRequest, is_target, own_kind

DENSE = "dense"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SystemEntry(_Entry):
    """A system under test."""

    kind: Literal["causal-lm", "sparse-encoder", "dense-encoder", "lexical"] = "causal-lm"
    model: str = ""
    """Reference; none for `lexical`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the processor computes in it, else float32."""
    base_precision: str = ""
    """What the weights were before they became this dtype, when the reference does not say."""
    batch_tokens: int | None = Field(default=None, ge=16)
    """Tokens of one forward pass; None: what suits the device."""
    devices: int = Field(default=1, ge=1)
    """GPUs that the model's blocks are spread over; a processor holds them all."""

    @model_validator(mode="after")
    def _has_model(self) -> SystemEntry:
        if self.kind != "causal-lm" and self.devices > 1:
            raise FieldError(f"a {self.kind} runs on one device", "only a causal-lm is spread over several")
        if self.kind != "lexical" and not self.model:
            raise FieldError(
                f"a {self.kind} needs a model", "model: hf:org/name, path:DIR or pypi:package==version#path"
            )
        return self


class CalibrationEntry(_Entry):
    """The text that calibrated methods read."""

    data: str
    """Name of a data set with text: `prose`, `wikitext2-train`, `c4-sample`."""
    sequences: int = Field(default=64, ge=1)
    length: int = Field(default=512, ge=2)
    seed: int = 0


class TaskEntry(_Entry):
    """A task in a grid."""

    task: str
    limit: int | None = Field(default=None, ge=1)


class Member(_Entry):
    """One member of a stack."""

    method: str
    knobs: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, float | int | str] | None = None
    """Its own, or a target that a plan solves."""
    solved: dict[str, Any] = Field(default_factory=dict)
    """Written by a plan: the target that the budget was solved for, its request, and the predicted share."""

    @model_validator(mode="after")
    def _known(self) -> Member:
        _check(self.method, self.knobs, self.budget)
        return self

    def sparsity(self) -> adapters.Sparsity:
        """The method with its knobs at its budget."""
        budget = Budget.from_dict(self.budget) if self.budget else None
        return adapters.Sparsity(adapters.get(self.method).configure(self.knobs), budget)


class MethodEntry(_Entry):
    """A method with the budgets to run it at, a stack of methods, or the dense system run another way."""

    method: str = ""
    knobs: dict[str, Any] = Field(default_factory=dict)
    budgets: dict[str, list[float | int | str]] = Field(default_factory=dict)
    stack: list[Member] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    request: str = ""
    """What targets are shares of, where it is not the grid's."""
    system: str = ""
    """Another system than the grid's."""
    noise: SystemChange | None = None
    """Dense again, at another dtype or batch: the noise floor (A/A)."""
    baseline: str = ""
    """Label of the row to compare with, where it is not the grid's."""

    @field_validator("budgets", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return {k: v if isinstance(v, list) else [v] for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _known(self) -> MethodEntry:
        if bool(self.method) == bool(self.stack):
            raise FieldError("name a method or a stack of methods, one of the two")
        if self.method != DENSE and self.noise is not None:
            raise FieldError("only the dense system has a noise row")
        if (self.method == DENSE or self.stack) and (self.knobs or self.budgets):
            raise FieldError(f"{'a stack' if self.stack else DENSE} takes no knobs and no budgets of its own")
        if any(not values for values in self.budgets.values()):
            raise FieldError("a kind of budget without a value")
        members = [member for stack in self.stacks() for member in stack]
        if self.seeds != [0] and not any("seed" in adapters.get(m.method).model_fields for m in members):
            raise FieldError("nothing here depends on a seed", "leave out `seeds`: equal cells are no replicates")
        seeded = [m for m in members if "seed" in adapters.get(m.method).model_fields]
        if self.seeds != [0] and all("seed" in m.knobs for m in seeded):
            raise FieldError("`seeds` beside a knob `seed`, which goes before them", "leave out one of the two")
        if len(set(self.seeds)) < len(self.seeds):
            raise FieldError("a seed stands twice", "equal cells are no replicates")
        return self

    def budget_list(self) -> list[dict[str, float | int | str]]:
        """Each budget by itself."""
        return [{kind: value} for kind, values in self.budgets.items() for value in values]

    def _each_budget(self) -> Sequence[dict[str, float | int | str] | None]:
        return self.budget_list() or [None]

    def stacks(self) -> Iterator[list[Member]]:
        """The stacks that this entry stands for; dense is the empty one."""
        if self.stack:
            yield self.stack
        elif self.method == DENSE:
            yield []
        else:
            for budget in self._each_budget():
                yield [Member(method=self.method, knobs=self.knobs, budget=budget)]

    def labels(self) -> list[str]:
        """What its rows are called; rows at a target have no name before they are solved."""
        return [
            " + ".join(member.sparsity().label for member in stack) or DENSE
            for stack in self.stacks()
            if not any(is_target(member.budget) for member in stack)
        ]

    def has_target(self) -> bool:
        """Whether a budget of it is a target, to be solved for."""
        return any(is_target(member.budget) for stack in self.stacks() for member in stack)


class SystemChange(_Entry):
    """How the noise row differs from the dense one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    batch_tokens: int | None = Field(default=None, ge=16)

    @model_validator(mode="after")
    def _changes(self) -> SystemChange:
        if self.dtype is None and self.batch_tokens is None:
            raise FieldError("a noise row runs at another dtype or batch_tokens", "noise: {batch_tokens: 384}")
        return self


class Grid(_Entry):
    """Methods x budgets x tasks on one system."""

    name: str
    system: str
    tasks: list[TaskEntry] = Field(min_length=1)
    methods: list[MethodEntry] = Field(min_length=1)
    calibration: str | None = None
    request: str = ""
    """What targets (`flops`, `bytes`, ...) are shares of."""
    baseline: str = DENSE
    """Label of the row that the others are paired with; `` for none."""

    @property
    def rows(self) -> list[MethodEntry]:
        """The methods, with the dense row in front that others are paired with, where the suite leaves it out."""
        there = any(entry.method == DENSE and entry.noise is None for entry in self.methods)
        return list(self.methods) if there or self.baseline != DENSE else [MethodEntry(method=DENSE), *self.methods]

    @field_validator("tasks", mode="before")
    @classmethod
    def _short_tasks(cls, value: Any) -> Any:
        return [{"task": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("methods", mode="before")
    @classmethod
    def _short_methods(cls, value: Any) -> Any:
        return [{"method": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


class Margin(_Entry):
    """What loss is still acceptable, fixed before the run."""

    relative: float | None = Field(default=None, gt=0)
    """Share of the baseline's value; for perplexity a ratio of 1 + relative."""
    points: float | None = Field(default=None, gt=0)
    """Absolute."""

    @model_validator(mode="after")
    def _one(self) -> Margin:
        if (self.relative is None) == (self.points is None):
            raise FieldError("a margin is relative or in points, one of the two")
        return self


class Conclude(_Entry):
    """What the suite concludes, and by which rule."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, gt=0.5, lt=1)
    margins: dict[str, dict[str, Margin]] = Field(default_factory=lambda: {"*": {"*": Margin(relative=0.05)}})
    """By task and metric; `*` stands for all others."""
    discordance: float = Field(default=0.1, gt=0, lt=1)
    """Share of changed answers that `plan` assumes for the power of binary metrics."""
    spread: float = Field(default=0.1, gt=0)
    """Standard deviation of paired differences that `plan` assumes for continuous metrics."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)

    def margin(self, task: str, metric: str) -> Margin | None:
        """The margin of a metric of a task; None where the suite declares none."""
        for t in (task, "*"):
            for m in (metric, "*"):
                if m in self.margins.get(t, {}):
                    return self.margins[t][m]
        return None


class Suite(_Entry):
    """A validated suite."""

    suite: str = Field(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$")
    version: int = Field(ge=1)
    title: str = ""
    description: str = ""
    seed: int = 0
    systems: dict[str, SystemEntry]
    calibration: dict[str, CalibrationEntry] = Field(default_factory=dict)
    requests: dict[str, IsoRequest] = Field(default_factory=dict)
    grids: list[Grid] = Field(min_length=1)
    conclude: Conclude = Conclude()

    def with_model(self, reference: str) -> Suite:
        """The suite with every causal LM replaced by `reference`."""
        systems = {
            name: s.model_copy(update={"model": reference, "base_precision": ""}) if s.kind == "causal-lm" else s
            for name, s in self.systems.items()
        }
        return self.model_copy(update={"systems": systems})


def _check(method: str, knobs: dict[str, Any], budget: dict[str, float | int | str] | None) -> None:
    """Whether the registry has that method, its card that budget and its class those knobs."""
    check_budget(adapters.get(method).configure(knobs), Budget.from_dict(budget) if budget else None)


def check_budget(adapter: adapters.Adapter, budget: Budget | None) -> None:
    """Whether the method takes that budget, or one that a target can be solved for."""
    if budget is not None and is_target(budget.to_dict()):
        own_kind(adapter)
    else:
        adapter.check_budget(budget)
