"""The uniform interface: an adapter wraps one sparse method.

An adapter's instance is its own frozen, validated configuration. `prepare` does the offline work, which budgets share;
`attach` makes the system sparser for as long as its context lasts, and gives the first system back bit for bit, also
after an exception. What is realised is counted by the system, never reported by the method.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsebench.adapters.card import MethodCard, Mode
from sparsebench.budget import Budget
from sparsebench.errors import InputError, NotRestoredError, UnknownNameError

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.cost import PhaseCosts, Request
    from sparsebench.systems.base import System
    from sparsebench.systems.imprint import Imprint


@dataclass
class Prepared:
    """What `prepare` leaves: a method's own state, and what it took.

    Attributes:
        state: Whatever the method wants back in `attach`; never stored.
        facts: Small JSON-able facts for the record (thresholds, layer ratios, ...).
        seconds: Wall time.
        tokens: Calibration tokens read.
        peak_bytes: Largest additional memory, where it was measured.
    """

    state: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int | None = None


class Adapter(BaseModel, ABC):
    """One sparse method with its knobs. Subclasses set `card` and declare knobs as annotated fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: ClassVar[MethodCard]
    needs_calibration: ClassVar[bool] = False
    accepts: ClassVar[tuple[str, ...]] = ("causal-lm",)
    """Kinds of systems that the method runs on."""

    @abstractmethod
    def attach(self, system: Any, prepared: Prepared, budget: Budget | None) -> AbstractContextManager[Any]:
        """The sparser system, for as long as the context lasts.

        Args:
            system: The system to wrap; of the kind that the family takes.
            prepared: What `prepare` returned for this system.
            budget: How sparse; None where the method has no budget (dense).
        """

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Offline work, shared by budgets unless the card says `prepare_depends_on_budget`."""
        return Prepared()

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Predicted FLOPs and bytes of one request; the dense cost unless a family knows better."""
        from sparsebench.cost import dense_cost

        return dense_cost(system.shape, request)

    def check_budget(self, budget: Budget | None) -> None:
        """Whether this method takes that budget.

        Raises:
            InputError: It does not; the message names the kinds that it takes.
        """
        kinds = self.card.budgets
        if budget is None and kinds:
            raise InputError(f"{self.card.id} needs a budget", f"it takes {', '.join(kinds)}")
        if budget is not None and budget.kind not in kinds:
            takes = ", ".join(kinds) if kinds else "no budget"
            raise InputError(f"{self.card.id} has no budget {budget.kind!r}", f"it takes {takes}")

    @property
    def config(self) -> dict[str, Any]:
        """Knobs by name, as plain data; part of a cell's identity."""
        return self.model_dump(mode="json")

    def resolved(self) -> Self:
        """The same configuration with references that its knobs hold made definite; what a cell's identity is made of.

        Raises:
            MissingError: What a reference means is not to be had.
        """
        return self

    def prefix_invariant(self) -> bool:
        """Whether prefixes may be shared with these knobs; the card's word unless a knob changes it."""
        return self.card.prefix_invariant

    def acts_in_prefill(self) -> bool:
        """Whether prefill is another with these knobs than without the method."""
        return True

    def reads_calibration(self) -> bool:
        """Whether `prepare` reads a calibration text with these knobs."""
        return self.needs_calibration

    def prepare_depends_on_budget(self) -> bool:
        """Whether `prepare` must see the budget with these knobs; the card's word unless a knob changes it."""
        return self.card.prepare_depends_on_budget

    @classmethod
    def configure(cls, knobs: dict[str, Any]) -> Self:
        """An instance from knobs by name.

        Raises:
            UnknownNameError: No such knob.
            InputError: A value that the knob does not take.
        """
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise InputError(f"{cls.card.id} does not say how to {' or '.join(missing)}", "write these methods")
        for name in knobs:
            if name not in cls.model_fields:
                raise UnknownNameError(f"knob of {cls.card.id}", name, cls.model_fields)
        try:
            return cls(**knobs)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{cls.card.id}: knob {where}={first.get('input')!r}: {first['msg']}") from None


class ExecutableAdapter(Adapter):
    """A method that is run in one of two modes; `check_mode` says where it cannot be executed."""

    mode: Mode = "simulated"
    """Whether the method is dense work under a mask, or skips what it leaves out."""

    @classmethod
    def configure(cls, knobs: dict[str, Any]) -> Self:
        """See `Adapter.configure`.

        Raises:
            InputError: Also where the method is to be executed and cannot be.
        """
        method = super().configure(knobs)
        method.check_mode()
        return method

    @abstractmethod
    def check_mode(self) -> None:
        """Whether the method can be executed, if it is to be.

        Raises:
            InputError: It cannot.
        """

    @property
    def config(self) -> dict[str, Any]:
        """See `Adapter.config`; the mode is named where it is not the usual one, which cells state on their own."""
        knobs = super().config
        return knobs if self.mode == "executed" else {name: knobs[name] for name in knobs if name != "mode"}


def check_together(cards: Sequence[MethodCard]) -> None:
    """Refuse a stack whose counts would be wrong.

    Raises:
        InputError: Two activation methods: each counts the zeros that it meets, the other's among them.
    """
    several = [card.id for card in cards if card.family == "activation"]
    if len(several) > 1:
        raise InputError(
            f"{' and '.join(several)} in one stack: zeros that both make would be counted twice",
            "take one activation method, and others of pruning or attention beside it",
        )


@dataclass(frozen=True)
class Sparsity:
    """An adapter at a budget: one member of a stack.

    `Sparsity(create("wanda")..., Budget("sparsity", 0.5))`; what `create` returns.
    """

    adapter: Adapter
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            self.adapter.check_budget(self.budget)

    @property
    def label(self) -> str:
        """`wanda 50%`."""
        return f"{self.adapter.card.id} {self.budget.label}" if self.budget else self.adapter.card.id


def prepare_timed(
    adapter: Adapter, system: System, calibration: Calibration | None, budget: Budget | None = None
) -> Prepared:
    """`adapter.prepare`, with its wall time and its memory charged.

    Raises:
        InputError: The method reads a calibration text and none was given.
    """
    if adapter.reads_calibration() and calibration is None:
        raise InputError(f"{adapter.card.id} reads a calibration text", "name one in the suite: calibration: ...")
    from sparsebench.systems.memory import added_memory

    start = time.perf_counter()
    with added_memory() as added:
        prepared = adapter.prepare(system, calibration, budget)
    prepared.seconds = time.perf_counter() - start
    prepared.peak_bytes = added.bytes if adapter.reads_calibration() else None
    return prepared


@contextmanager
def attached(
    system: System,
    stack: Sequence[Sparsity],
    calibration: Calibration | None = None,
    cache: dict[str, Prepared] | None = None,
    imprint: Imprint | None = None,
) -> Iterator[tuple[System, list[Prepared]]]:
    """Prepare and attach a stack in order: member k is prepared with the members before it attached.

    After it, all that the system is made of is compared with what it was before.

    Args:
        system: The dense system.
        stack: Members in order; an empty stack is dense.
        calibration: The text that calibrated methods read.
        cache: Prepared states to reuse, keyed by text, member and what stands before it; filled as a side effect.
        imprint: Of the dense system, where it is known; else it is taken.

    Raises:
        NotRestoredError: A method did not give the system back as it was.
    """
    import json

    dense = system
    with giving_back(system, stack, imprint), ExitStack() as contexts:
        states: list[Prepared] = []
        before: list[Any] = []
        text = calibration.hash if calibration is not None else None
        for member in stack:
            adapter, budget = member.adapter, member.budget
            adapter.check_budget(budget)
            depends = adapter.prepare_depends_on_budget()
            key = json.dumps(
                [text, before, adapter.card.id, adapter.config, budget.to_dict() if budget and depends else None]
            )
            prepared = cache.get(key) if cache is not None else None
            if prepared is None:
                prepared = prepare_timed(adapter, system, calibration, budget if depends else None)
                if cache is not None:
                    cache[key] = prepared
            if not states:
                system.see_dense()
            system = contexts.enter_context(adapter.attach(system, prepared, budget))
            states.append(prepared)
            before.append([adapter.card.id, adapter.config, budget.to_dict() if budget else None])
        acting = [entry for member, entry in zip(stack, before, strict=True) if member.adapter.acts_in_prefill()]
        prefill = json.dumps([text, acting])
        contexts.enter_context(system.prefilling(prefill))

        outer = dense.lifting

        @contextmanager
        def lifted() -> Iterator[None]:
            contexts.close()
            try:
                with outer():
                    yield
            finally:
                for member, state in zip(stack, states, strict=True):
                    contexts.enter_context(member.adapter.attach(dense, state, member.budget))
                contexts.enter_context(dense.prefilling(prefill))

        if system is dense:
            dense.lifting = lifted
        else:  # a method put another object in its place, under which nothing can be put back
            system.lifting = refuse_lifting
        try:
            yield system, states
        finally:
            dense.lifting = outer


@contextmanager
def giving_back(system: System, stack: Sequence[Sparsity], imprint: Imprint | None = None) -> Iterator[None]:
    """Whatever a stack does to the system within the context has to be undone after it, also where it failed.

    Raises:
        NotRestoredError: It is not; the message names the methods and what first differs.
    """
    if not stack:
        yield
        return
    before = imprint or system.imprint()
    try:
        yield
    except Exception as error:
        check_given_back(system, stack, before, error)
        raise
    check_given_back(system, stack, before)


def check_given_back(
    system: System, stack: Sequence[Sparsity], before: Imprint | None, cause: Exception | None = None
) -> None:
    """Compare a system with what it was before a stack was attached.

    Raises:
        NotRestoredError: It is another one.
    """
    from sparsebench.systems.imprint import shown

    now = system.imprint() if before is not None else None
    if before is None or now is None or not (found := before.differences(now)):
        return
    names = " and ".join(member.adapter.card.id for member in stack)
    failed = f", after it had failed with {type(cause).__name__}: {cause}" if cause is not None else ""
    raise NotRestoredError(
        f"{names} did not give the model back as it was: {shown(found)}{failed}",
        "what `attach` or a hook changes it must put back when its context ends; `systems.weights.restoring` does that "
        "for the weights of layers, and nothing that a hook is handed may be written to",
    ) from cause


def refuse_lifting() -> AbstractContextManager[None]:
    """What `System.lifted` does where a method is a system of its own.

    Raises:
        InputError: Always.
    """
    raise InputError("what is attached cannot be taken off for a while: it is another system than the dense one")
