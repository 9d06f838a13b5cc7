"""Which stored cells a claim is about, and what each is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.reports import notation
from sparsebench.reports.claim_language import Claim, Member, described
from sparsebench.reports.collect import budget_name, method_name
from sparsebench.reports.runs import whole_runs
from sparsebench.reports.sources import Cells, Source
from sparsebench.store import StoredCell

Found = tuple[Source, StoredCell]


def same_name(a: str, b: str) -> bool:
    """Whether two names mean the same, whatever their case and however their words are joined."""
    return a.casefold().replace("_", "-") == b.casefold().replace("_", "-")


def cells_of(claim: Claim, sources: Sequence[Source]) -> list[Found]:
    """The cells that a claim is about.

    Raises:
        InputError: There is none; the message says what there is.
    """
    everything = whole_runs(Cells(sources))
    tasks = claim.tasks or ((claim.what,) if any(same_name(claim.what, c.spec.task.id) for _, c in everything) else ())
    for task in tasks:
        if not any(same_name(task, cell.spec.task.id) for _, cell in everything):
            raise UnknownNameError("task of these results", task, {cell.spec.task.id for _, cell in everything})
    found = _of_stack(claim.subject, everything)
    if claim.model:
        models = {notation.model_name(cell.spec.system.ref) for _, cell in found}
        found = [(s, c) for s, c in found if claim.model.casefold() in c.spec.system.ref.casefold()]
        if not found:
            raise UnknownNameError("model of these results", claim.model, models)
    chosen = [(s, c) for s, c in found if not tasks or any(same_name(task, c.spec.task.id) for task in tasks)]
    missing = [task for task in tasks if not any(same_name(task, c.spec.task.id) for _, c in chosen)]
    if missing or not chosen:
        raise InputError(f"{described(claim.subject)} was not measured on {', '.join(missing)}", None)
    return sorted(chosen, key=lambda found: (found[1].spec.task.id, found[1].record.outcome.sparsity or 0, found[1].id))


def _of_stack(members: Sequence[Member], cells: Sequence[Found]) -> list[Found]:
    """Cells of a stack, or what there is instead."""
    named = [(s, c) for s, c in cells if _same_methods(members, c)]
    if not named:
        raise UnknownNameError("method of these results", "+".join(m.method for m in members), _methods(cells))
    found = [(s, c) for s, c in named if _same_settings(members, c)]
    if not found:
        there = sorted({f"{budget_name(c.spec.stack)} {c.record.placement.config}".strip() for _, c in named})
        raise InputError(f"{described(members)} is not among these results", f"there are: {'; '.join(there)}")
    return found


def _methods(cells: Sequence[Found]) -> set[str]:
    return {method_name(c) for _, c in cells if c.record.placement.role not in ("baseline", "noise")}


def _same_methods(members: Sequence[Member], cell: StoredCell) -> bool:
    if cell.record.placement.role == "noise":
        return False
    stack = cell.spec.stack
    if not stack:
        return len(members) == 1 and same_name(members[0].method, method_name(cell))
    return len(stack) == len(members) and all(
        same_name(m.method, s.method) for m, s in zip(members, stack, strict=True)
    )


def _same_settings(members: Sequence[Member], cell: StoredCell) -> bool:
    for member, spec in zip(members, cell.spec.stack, strict=False):
        if member.budget is not None and member.budget.to_dict() != (spec.budget or {}):
            return False
        if any(str(spec.knobs.get(name)) != value for name, value in member.knobs):
            return False
    return True


def reduced(found: list[Found], sources: Sequence[Source]) -> list[Source]:
    """The sources with only the cells that are asked about, their baselines, and those baselines' noise."""
    wanted = {cell.id for _, cell in found}
    baselines = {cell.record.placement.baseline for _, cell in found}
    return [
        replace(
            source,
            cells={
                k: c
                for k, c in source.cells.items()
                if k in wanted
                or k in baselines
                or (c.record.placement.role == "noise" and c.record.placement.baseline in baselines)
            },
            broken={},
        )
        for source in sources
    ]


def opponents(claim: Claim, source: Source, cell: StoredCell, cells: Cells) -> Iterator[StoredCell | str]:
    """The cells that one is compared with, or why there is none."""
    if claim.against is None or [m.method for m in claim.against] == ["dense"]:
        named = cell.record.placement.baseline
        if named is None or named == cell.id:
            yield "it is a baseline itself"
            return
        baseline = cells.find(source, named)
        yield baseline[1] if baseline else "its baseline is not among the results"
        return
    rivals = [
        c
        for _, c in _of_stack(claim.against, list(cells))
        if (c.spec.task.id, c.spec.system.ref) == (cell.spec.task.id, cell.spec.system.ref)
    ]
    same_seed = [c for c in rivals if c.spec.seed == cell.spec.seed]
    if not rivals:
        yield f"{described(claim.against)} was not measured on {cell.spec.task.id}"
    yield from same_seed or rivals
