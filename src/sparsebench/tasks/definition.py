"""A task's definition: a YAML file that says which rows, which prompts, which scorer, which metrics."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.errors import FieldError
from sparsebench.identity import digest
from sparsebench.metrics import Metric
from sparsebench.records import DataFact, TaskSpec


class Prompt(BaseModel):
    """Sandboxed Jinja templates over a row's fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = "{{ prompt }}"
    context: str = ""
    """The part of the prompt that a cache method may compress before it sees the question; `` for none."""
    target: str = "{{ target }}"
    cluster: str = ""
    """Unit of resampling; `` when samples are independent."""
    id: str = ""


class Generation(BaseModel):
    """How answers are generated; the names are lm-eval's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: list[str] = ["\n"]
    """The answer ends before the first of these strings."""
    max_gen_toks: int = Field(default=64, ge=1)
    ignore_eos: bool = False
    """Go on to `max_gen_toks`, so that every answer has the same number of decode queries."""
    temperature: float = Field(default=0.0, ge=0)
    """0: greedy."""
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """As lm-eval's `generate_until` takes them."""
        return {**self.model_dump(), "do_sample": self.temperature > 0}


class TaskDefinition(BaseModel):
    """What a task is. Its hash is part of every cell's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$")
    version: int = Field(ge=1)
    title: str
    description: str = ""
    family: Literal["knowledge", "language", "long-context", "reasoning", "retrieval", "speed"]
    type: Literal["generate", "choice", "perplexity", "divergence", "continuation", "retrieval", "speed"]
    data: list[dict[str, Any]] = Field(default_factory=list)
    """Alternatives; the first that is there is used."""
    build: str = ""
    """Name of the function that makes rows (or a collection) of what `data` holds."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `build`."""
    template: Prompt = Prompt()
    generation: Generation = Generation()
    scorer: str = ""
    metrics: list[Metric] = Field(min_length=1)
    window: int = Field(default=1024, ge=2)
    """Perplexity: tokens of a window; windows do not overlap. Speed: tokens of a prompt."""
    windows: int | None = Field(default=None, ge=1)
    """Perplexity: windows at most, evenly spread over the text. Speed: prompts of the batch."""
    score_from: int = 1
    """Perplexity: position of the first scored token of a window; below 0 it counts from the end."""
    decode: bool = False
    """Perplexity: scored tokens run query by query under a method that acts in decode."""
    seed: int = 0
    """Added to the builder's option `seed`, and to the choice of rows where a limit leaves some out. A suite's is added
    to it. No part of the hash: that of the rows follows from it."""
    lengths: list[int] = Field(default_factory=list)
    """Lengths in tokens at which the task is listed, where its samples are made for any. In the file `task` is then
    the first part of the names: `needle` of `needle-2048`."""
    license: str = ""
    publish_text: bool = False

    @model_validator(mode="after")
    def _complete(self) -> TaskDefinition:
        if self.type in ("generate", "choice") and not self.scorer:
            raise FieldError(f"a {self.type} task names its scorer")
        if self.score_from < 0 < self.window + self.score_from:
            object.__setattr__(self, "score_from", self.window + self.score_from)
        if not 1 <= self.score_from < self.window:
            raise FieldError(f"score_from {self.score_from} leaves nothing of a window of {self.window}")
        object.__setattr__(self, "metrics", [metric.with_defaults() for metric in self.metrics])
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise FieldError("two metrics have one name")
        if not any(metric.headline for metric in self.metrics):
            raise FieldError("no metric is the headline", "set headline: true on one")
        return self

    @classmethod
    def at_length(cls, data: dict[str, Any], length: int) -> dict[str, Any]:
        """What a file with `lengths` says of the task at one length, which need not be among them.

        The length is the window of a perplexity or a speed, and the builder's option `length` of anything else.
        """
        named = {**data, "task": f"{data.get('task')}-{length}", "title": f"{data.get('title')}, {length:,} tokens"}
        if data.get("type") in ("perplexity", "speed"):
            return {**named, "window": length}
        options = data.get("options") or {}
        # Options that are no mapping stay as they are, for the validation to name.
        return {**named, "options": {**options, "length": length} if isinstance(options, dict) else options}

    def fact(self, source: str, sha256: str) -> DataFact:
        """The data that the task read, for the record."""
        return DataFact(
            name=self.task, source=source, sha256=sha256, license=self.license, publish_text=self.publish_text
        )

    def spec(self, data: str, limit: int | None) -> TaskSpec:
        """The task in a cell's identity; `data` is the hash of what it asks."""
        return TaskSpec(id=self.task, version=self.version, definition=self.definition_hash, data=data, limit=limit)

    @property
    def definition_hash(self) -> str:
        """Hash of everything here that changes numbers."""
        shown_only = {"title", "description", "seed", "lengths", "license", "publish_text"}
        return digest(self.model_dump(mode="json", exclude=shown_only))[:16]
