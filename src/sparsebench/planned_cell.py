"""A cell as it is planned: its specification, where it stands in its suite, and what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from sparsebench import adapters
from sparsebench.adapters.base import Sparsity
from sparsebench.errors import InputError
from sparsebench.identity import cell_id
from sparsebench.records import CellSpec, MemberSpec, Placement, SystemSpec
from sparsebench.suite import DENSE

if TYPE_CHECKING:
    from sparsebench.tasks.base import BoundTask


class PlannedCell(BaseModel):
    """A cell to run: plain data, so that a worker elsewhere needs nothing else."""

    model_config = ConfigDict(extra="forbid")

    id: str
    spec: CellSpec
    placement: Placement
    task: str
    """The task as the suite names it; a file's path, where `spec.task` has the name that the file gives."""
    task_seed: int = 0
    """The suite's, which samples and few-shot examples are drawn with; the hash of the rows is in `spec.task`."""
    base_precision: str = ""
    """What the suite says of the weights' precision before they became this dtype."""
    batch_tokens: int | None = None
    """Tokens of one forward pass; None: what suits the device. No part of the identity."""
    devices: int = 1
    """GPUs that its model is spread over. No part of the identity."""
    flops: float = 0.0
    """Predicted, for the order of work and the time left."""


def cell_of_stack(
    system: SystemSpec,
    stack: Sequence[Sparsity],
    task: str,
    bound: BoundTask,
    calibration: dict[str, Any] | None,
    batch_tokens: int | None,
    seed: int = 0,
) -> PlannedCell:
    """One cell: a system under a stack on a task.

    Args:
        system: The system.
        stack: Methods at budgets; none: dense.
        task: The task as it was asked for.
        bound: The task with its rows.
        calibration: The calibration set's entry and hash, where a method reads one.
        batch_tokens: Tokens of one forward pass; no part of the identity.
        seed: The methods' seed; the knob `seed` of a method goes before it.

    Raises:
        InputError: The task times a method that masks dense work.
    """
    configured = [member.adapter for member in stack]
    if bound.times:
        _refuse_simulated(bound, configured)
    seeds = seeds_of(configured, seed)
    seed = next((own for own in seeds if own is not None), seed)
    members = [
        MemberSpec(
            method=m.adapter.card.id,
            version=m.adapter.card.version,
            knobs={k: v for k, v in m.adapter.resolved().config.items() if k != "seed"}
            | ({} if own in (None, seed) else {"seed": own}),
            budget=m.budget.to_dict() if m.budget else None,
            code=adapters.code_of(type(m.adapter)),
        )
        for m, own in zip(stack, seeds, strict=True)
    ]
    spec = CellSpec(
        system=system,
        stack=members,
        task=bound.spec,
        mode=_mode(configured),
        protocol=bound.protocol,
        calibration=calibration,
        seed=seed,
    )
    label = " + ".join(member.label for member in stack) or DENSE
    card = configured[-1].card if configured else None
    role = card.role if card else ("noise" if system.replica else "baseline")
    placement = Placement(
        suite="evaluate",
        suite_version=1,
        grid="evaluate",
        family=card.family if card else DENSE,
        baseline=None,
        role=role,
        label=f"{label} ({system.replica})" if system.replica else label,
        config=" ".join(f"{k}={v}" for a in configured for k, v in _changed_knobs(a).items()),
        facts={"budgets": [m.budget.label for m in stack if m.budget], **_facts(configured)},
    )
    return PlannedCell(id=cell_id(spec.plain()), spec=spec, placement=placement, task=task, batch_tokens=batch_tokens)


def seeds_of(stack: Sequence[adapters.Adapter], seed: int) -> list[int | None]:
    """The seed of each member: of its own knob where that was set, or else the row's; None for one that has none.

    The first is the cell's.
    """
    own = [getattr(adapter, "seed", None) for adapter in stack]
    return [s if s is None or "seed" in a.model_fields_set else seed for s, a in zip(own, stack, strict=True)]


def _refuse_simulated(bound: BoundTask, stack: list[adapters.Adapter]) -> None:
    for adapter in stack:
        if _mode([adapter]) == "simulated":
            able = "executed" in adapter.card.modes
            raise InputError(
                f"task {bound.spec.id} times methods; {adapter.card.id} is a mask over dense work, which has no speed",
                "give it the knob mode: executed" if able else "no code here skips what it leaves out",
            )


def _mode(stack: list[adapters.Adapter]) -> Any:
    modes = [getattr(a, "mode", a.card.modes[0]) for a in stack]
    return "executed" if all(mode == "executed" for mode in modes) else "simulated"


def _changed_knobs(adapter: adapters.Adapter) -> dict[str, Any]:
    return {
        name: getattr(adapter, name)
        for name, info in type(adapter).model_fields.items()
        if getattr(adapter, name) != info.get_default(call_default_factory=True)
    }


def _facts(stack: list[adapters.Adapter]) -> dict[str, Any]:
    """What makes two rows with one name different: in every row, whatever its value."""
    facts: dict[str, Any] = {}
    for adapter in stack:
        facts.setdefault("unit", adapter.card.unit)
        for name in ("compare_group", "stats_pass", "scope", "phase", "ratios", "share"):
            if name in type(adapter).model_fields:
                facts[name] = getattr(adapter, name)
        if adapter.card.deviations:
            facts["deviations"] = list(adapter.card.deviations)
    return facts
