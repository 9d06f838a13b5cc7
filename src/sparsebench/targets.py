"""Targets of a suite, such as `budgets: {flops: [0.9, 0.8]}`, as budgets of the methods' own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sparsebench import adapters, iso
from sparsebench.budget import ISO_KINDS, Budget
from sparsebench.errors import InputError
from sparsebench.suite import DENSE, Grid, Member, MethodEntry, Suite

Record = dict[str, Any]
"""What a plan's lock says of one target: where it stands, its request, the budget or None, and the predicted shares."""


def solve_targets(suite: Suite, references: Mapping[str, str]) -> tuple[Suite, list[Record]]:
    """The suite with every target solved, and a record of each.

    A target becomes a row with the method's own budget, and what it was solved for beside it. A target that a method
    cannot meet has no row; its record says so, with the shares that the method can have.

    Args:
        suite: The suite.
        references: Definite references of its systems, by name.

    Raises:
        InputError: A system of targets is no causal LM, or its cost is not modelled.
    """
    if not any(entry.has_target() for grid in suite.grids for entry in grid.methods):
        return suite, []
    solver = _Solver(suite, references)
    grids = [grid.model_copy(update={"methods": list(solver.solved_methods(grid))}) for grid in suite.grids]
    return suite.model_copy(update={"grids": grids}), solver.records


@dataclass
class _Solver:
    suite: Suite
    references: Mapping[str, str]
    records: list[Record] = field(default_factory=list)

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {}

    def model(self, name: str) -> Any:
        """The sizes of a system."""
        if self.suite.systems[name].kind != "causal-lm":
            raise InputError(f"a target is a share of what a causal LM costs, and {name} is none")
        if name not in self._models:
            from sparsebench.systems.sizes import weightless

            self._models[name] = weightless(self.references[name])
        return self._models[name]

    def solved_methods(self, grid: Grid) -> Iterator[MethodEntry]:
        """The entries of a grid, those with targets as one entry for each that can be met; dense where none is left."""
        left = 0
        for entry in grid.methods:
            if not entry.has_target():
                left += 1
                yield entry
                continue
            for stack in entry.stacks():
                members = self._solved(grid, entry, stack) if any(iso.is_target(m.budget) for m in stack) else stack
                if members is not None:
                    left += 1
                    kept = {"seeds": entry.seeds, "system": entry.system, "baseline": entry.baseline}
                    yield MethodEntry(stack=members, **kept)
        if not left:
            yield MethodEntry(method=DENSE)

    def _solved(self, grid: Grid, entry: MethodEntry, stack: list[Member]) -> list[Member] | None:
        """The stack with its target solved; None where it cannot be met."""
        free = [place for place, member in enumerate(stack) if iso.is_target(member.budget)]
        if len(free) > 1:
            raise InputError(
                f"grid {grid.name}: one member of a stack has a target", "give the others their own budgets"
            )
        place, name = free[0], entry.request or grid.request
        request = self.suite.requests[name]
        target = Budget.from_dict(stack[place].budget or {})
        members = [
            (
                adapters.get(member.method).configure(member.knobs),
                Budget.from_dict(member.budget) if member.budget and at != place else None,
            )
            for at, member in enumerate(stack)
        ]
        text = self.suite.calibration.get(grid.calibration or "")
        found = iso.solve(
            self.model(entry.system or grid.system),
            members,
            place,
            target,
            request,
            iso.CalibrationSize(text.sequences, text.length) if text is not None else None,
            self.model(request.of) if request.of else None,
        )
        solved = {**target.to_dict(), "request": name, **request.model_dump(exclude_defaults=True)}
        solved["predicted"] = round(found.share, 6)
        self.records.append(
            {
                "grid": grid.name,
                "system": entry.system or grid.system,
                "methods": [member.method for member in stack],
                **solved,
                "budget": found.budget.to_dict() if found.budget is not None else None,
                "least": round(found.least, 6),
                "most": round(found.most, 6),
                "nearest": round(found.share, 6),
            }
        )
        if found.budget is None:
            return None
        solved_member = stack[place].model_copy(update={"budget": found.budget.to_dict(), "solved": solved})
        return [*stack[:place], solved_member, *stack[place + 1 :]]


def unmet(records: list[Record]) -> list[str]:
    """What cannot be met, in words."""
    lines = []
    for record in records:
        if record["budget"] is None:
            kind = next(kind for kind in ISO_KINDS if kind in record)
            between = record["least"] < record[kind] < record["most"]
            reached = f"it reaches from {record['most']:.3f} to {record['least']:.3f}"
            lines.append(
                f"{' + '.join(record['methods'])} on {record['system']} cannot have {record[kind]:g} of the {kind} of "
                f"{record['request']}: "
                + (f"it goes in steps, of which the nearest is {record['nearest']:.3f}" if between else reached)
            )
    return lines
