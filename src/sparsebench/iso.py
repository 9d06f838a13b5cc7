"""Equal cost: the budget at which a method costs a share of what the dense model costs, for a stated request.

A target such as `flops: 0.8` means nothing until it names phase, prompt, answer and batch. Predicted costs are those of
the adapters; of a stack the shares of its members multiply, line by line, and the work of choosing and repairing adds
up. Two ways of counting stand apart: `ideal` skips every zero and every pair left out, `realisable` only what a named
kernel skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.budget import ISO_KINDS, Budget, BudgetKind
from sparsebench.cost import PHASES, Cost, Phase, PhaseCosts, Request, dense_cost
from sparsebench.errors import FieldError, InputError

if TYPE_CHECKING:
    from sparsebench.adapters.base import Adapter

TOLERANCE = 0.005
"""A budget meets a target when its predicted share is that near."""
LARGEST_SPARSITY = 0.98
"""Beyond it a query reads a handful of keys, and a prediction by shares says nothing."""
_STEPS = 10_000
"""Sparsities are tried in steps of 1e-4, so that a solved budget can be read and has one id everywhere."""
_MOST_BITS = 16
OWN_KINDS: tuple[BudgetKind, ...] = ("sparsity", "tokens", "bits")
"""Kinds of a method's own budget that a target can be solved for, the first it takes before the others."""


class IsoRequest(BaseModel):
    """The request that a target is a share of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Literal["prefill", "decode", "whole"] = "prefill"
    prompt: int = Field(ge=1)
    """Tokens that run in prefill."""
    answer: int = Field(default=0, ge=0)
    """Tokens that run in decode."""
    batch: int = Field(default=1, ge=1)
    count: Literal["ideal", "realisable"] = "ideal"
    """`ideal`: zeros and pairs left out cost nothing; `realisable`: only those that a kernel skips."""
    prepared_for: int | None = Field(default=None, ge=1)
    """Requests that preparation (the calibration text) is spread over; None: it is not counted."""
    of: str = ""
    """The system whose dense cost is the measure; `` for the row's own."""

    @model_validator(mode="after")
    def _has_phase(self) -> IsoRequest:
        if self.phase == "decode" and not self.answer:
            raise FieldError("a request whose decode counts has answer tokens", "answer: 64")
        return self

    @property
    def request(self) -> Request:
        """As the cost model takes it."""
        return Request(self.prompt, self.answer, self.batch)


@dataclass(frozen=True)
class CalibrationSize:
    """How much text a method is calibrated on: sequences of so many tokens."""

    sequences: int
    length: int


@dataclass(frozen=True)
class Solved:
    """What came of solving for a target.

    Attributes:
        budget: The method's own budget; None where it cannot meet the target.
        share: Predicted share at that budget, or at the nearest that the method has.
        least: The smallest share that the method can have.
        most: The largest.
    """

    budget: Budget | None
    share: float
    least: float
    most: float


Members = Sequence[tuple["Adapter", Budget | None]]
"""Methods of a stack, each with its own budget."""


def predicted(system: Any, stack: Members, request: IsoRequest) -> PhaseCosts:
    """Predicted cost of a stack.

    Args:
        system: A causal LM, of which sizes alone are read (`systems.sizes.weightless` will do).
        stack: Methods at their own budgets; none: dense.
        request: What is asked of it.
    """
    dense = dense_cost(system.shape, request.request)
    found = dense
    for adapter, budget in stack:
        alone = adapter.cost(system, request.request, budget)
        if request.count == "realisable":
            alone = realisable(adapter, budget, alone, dense, request.batch)
        found = PhaseCosts(*(_both(found.of(p), alone.of(p), dense.of(p)) for p in PHASES))
    return found


_ADDED = ("index", "correction")


def _both(one: Cost, other: Cost, dense: Cost) -> Cost:
    """The cost of two methods that leave out independently of one another."""
    lines = {}
    for field in fields(Cost):
        a, b, whole = (getattr(cost, field.name) for cost in (one, other, dense))
        lines[field.name] = a + b if field.name in _ADDED else a * b / whole if whole else max(a, b)
    return Cost(**lines)


#: Units whose zeros in the weights leave smaller matrices behind.
_SMALLER = frozenset({"block", "channel", "neuron", "head", "layer", "rank"})
#: Units that are stored smaller, whatever is multiplied.
_STORED = frozenset({"bit", "group"})
#: Units of which a block-sparse attention kernel skips whole tiles.
_TILES = frozenset({"block", "page", "chunk", "head"})


def kernel(adapter: Adapter, budget: Budget | None, phase: Phase, batch: int = 1) -> str | None:
    """The kernel that skips what a method leaves out in a phase; None where there is none.

    | left out | prefill | decode |
    | --- | --- | --- |
    | keys, in blocks, in fixed bands, or what can be executed | block-sparse attention | gathered keys |
    | other keys | none | gathered keys, where the method can be executed |
    | weights, in whole matrices, heads or channels | smaller matrices | the same |
    | weights, 2:4 | sparse tensor cores | none: memory bounds it |
    | activations | none | columns of the weights, at batch 1 |
    | single weights, other patterns | none | none |
    """
    card = adapter.card
    if card.family == "attention":
        executed = phase in getattr(adapter, "executes", ())
        if phase == "decode":
            return "gathered keys and values" if executed else None
        bands = card.adaptivity == "static" and card.role != "control"
        return "block-sparse attention" if card.unit in _TILES or bands or executed else None
    if card.family == "activation":
        return "columns of the weights" if phase == "decode" and batch == 1 else None
    if card.unit in _SMALLER:
        return "smaller matrices"
    pattern = budget is not None and budget.to_dict() == {"pattern": "2:4"}
    return "sparse tensor cores" if pattern and phase == "prefill" else None


def realisable(
    adapter: Adapter, budget: Budget | None, ideal: PhaseCosts, dense: PhaseCosts, batch: int = 1
) -> PhaseCosts:
    """A predicted cost without the savings that no kernel turns into less work; see `kernel`."""

    def of(phase: Phase) -> Cost:
        found, whole = ideal.of(phase), dense.of(phase)
        if kernel(adapter, budget, phase, batch) is not None:
            return found
        if adapter.card.family == "attention":
            read = max(found.bytes_kv_read, whole.bytes_kv_read)
            return replace(found, attention=whole.attention, bytes_kv_read=read)
        stored = found.bytes_weights if adapter.card.unit in _STORED else whole.bytes_weights
        return replace(found, linear=whole.linear, bytes_weights=stored)

    return PhaseCosts(of("prefill"), of("decode"))


def preparation(system: Any, adapter: Adapter, calibration: CalibrationSize | None) -> float:
    """Predicted FLOPs of a method's offline work: one dense pass over its calibration text, three with gradients."""
    if calibration is None or not adapter.reads_calibration():
        return 0.0
    once = dense_cost(system.shape, Request(calibration.length, 0)).prefill.flops
    return calibration.sequences * once * (3 if adapter.card.training == "gradient" else 1)


def amount(system: Any, costs: PhaseCosts, kind: str, request: IsoRequest) -> float:
    """What a target is a share of.

    `flops`: of the phase; `bytes`: read in the phase, of keys a lower bound where the query heads of a group choose for
    themselves (see `AttentionAdapter.cost`); `kv_bytes`: keys, values and what an index keeps of them, held when the
    answer ends; `active_params`: weights that one token of the phase is multiplied with, the LM head's among them.

    Raises:
        InputError: The request has no such phase.
    """
    phase = costs.whole if request.phase == "whole" else costs.of(request.phase)
    if kind == "flops":
        return phase.flops
    if kind == "bytes":
        return phase.bytes
    if kind == "kv_bytes":
        if not request.answer:
            raise InputError("kv_bytes are those that are held when the answer ends", "give the request an `answer`")
        return costs.decode.bytes_kv_resident
    tokens = {"prefill": request.prompt, "decode": request.answer, "whole": request.prompt + request.answer}
    return phase.linear / (2 * request.batch * tokens[request.phase]) + float(system.shape.head_params)


def share(
    system: Any,
    stack: Members,
    kind: str,
    request: IsoRequest,
    calibration: CalibrationSize | None = None,
    reference: Any = None,
) -> float:
    """Predicted cost of a stack, as a share of what the dense model (or `reference`, dense) costs.

    Args:
        system: The model that the stack runs on.
        stack: Methods at their own budgets.
        kind: One of `budget.ISO_KINDS`.
        request: What is asked.
        calibration: The text that methods read; counts where the request says for how many requests it serves.
        reference: Another model, whose dense cost is the measure.
    """
    measure = system if reference is None else reference
    dense = amount(measure, dense_cost(measure.shape, request.request), kind, request)
    own = amount(system, predicted(system, stack, request), kind, request)
    if kind == "flops" and request.prepared_for:
        spent = sum(preparation(system, adapter, calibration) for adapter, _ in stack)
        own += spent * request.batch / request.prepared_for
    return own / dense


def own_kind(adapter: Adapter) -> BudgetKind:
    """The kind of budget that a target is solved for.

    Raises:
        InputError: The method takes none whose cost can be predicted.
    """
    for kind in OWN_KINDS:
        if kind in adapter.card.budgets:
            return kind
    takes = ", ".join(adapter.card.budgets) or "no budget"
    raise InputError(
        f"{adapter.card.id} has no budget whose cost can be predicted", f"it takes {takes}; name one of these instead"
    )


def _bits_taken(adapter: Adapter) -> list[int]:
    """Bits that a method stores weights in, the most first: not every number has a grid."""

    def takes(bits: int) -> bool:
        try:
            adapter.check_budget(Budget("bits", bits))
        except InputError:
            return False
        return True

    return [bits for bits in range(_MOST_BITS, 0, -1) if takes(bits)]


def solve(
    system: Any,
    stack: Members,
    free: int,
    target: Budget,
    request: IsoRequest,
    calibration: CalibrationSize | None = None,
    reference: Any = None,
) -> Solved:
    """The own budget of one member at which the stack meets a target.

    Args:
        system: The model.
        stack: Methods; the budget of member `free` is what is looked for.
        free: Its place.
        target: `Budget("flops", 0.8)` or another of `ISO_KINDS`.
        request: What the target is a share of.
        calibration: See `share`.
        reference: See `share`.

    Raises:
        InputError: The method has no budget whose cost can be predicted.
    """
    adapter = stack[free][0]
    kind = own_kind(adapter)
    length = request.prompt + request.answer
    bits = _bits_taken(adapter) if kind == "bits" else []
    count = {"sparsity": int(LARGEST_SPARSITY * _STEPS), "bits": len(bits) - 1}.get(kind, length - 1)

    def budget(step: int) -> Budget:
        """Budgets from dense to sparse."""
        if kind == "sparsity":
            return Budget(kind, step / _STEPS)
        return Budget(kind, bits[step] if kind == "bits" else length - step)

    known: dict[int, float] = {}

    def at(step: int) -> float:
        if step not in known:
            members = [(a, budget(step) if place == free else b) for place, (a, b) in enumerate(stack)]
            known[step] = share(system, members, target.kind, request, calibration, reference)
        return known[step]

    dense, sparse = at(0), at(count)
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) > target.number else (low, middle)
    best = min((low, high), key=lambda step: (abs(at(step) - target.number), step))
    met = abs(at(best) - target.number) <= TOLERANCE
    return Solved(budget(best) if met else None, at(best), min(dense, sparse), max(dense, sparse))


def is_target(budget: Mapping[str, Any] | None) -> bool:
    """Whether a budget as suites write it is a target, and no budget of a method's own."""
    return bool(budget) and set(budget or ()) <= set(ISO_KINDS)
