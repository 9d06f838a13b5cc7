"""Which cell of one results folder is which cell of another: by system, stack and task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsebench.identity import canonical
from sparsebench.records import CellSpec
from sparsebench.store import StoredCell

TELL_APART = ("dtype", "mode", "protocol", "seed", "calibration")
"""What tells cells of one system, stack and task apart within a folder."""

DECIDE = ("torch", "transformers", "tokenizers", "lm-eval", "bm25s", "sentence-transformers")
"""Packages whose version may change what a system answers."""


@dataclass(frozen=True)
class Match:
    """A cell and its counterpart.

    Attributes:
        baseline: The cell.
        candidate: Its counterpart; None where there is none.
        differs: What differs between the two without keeping them from being compared: `model fingerprint`, ...
        refused: What differs so that they must not be compared; empty where they may be.
    """

    baseline: StoredCell
    candidate: StoredCell | None
    differs: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Matching:
    """All cells of two folders.

    Attributes:
        matches: One for each cell of the baseline folder.
        new: Cells that only the candidate folder has.
    """

    matches: list[Match] = field(default_factory=list)
    new: list[StoredCell] = field(default_factory=list)


def match(baseline: Sequence[StoredCell], candidate: Sequence[StoredCell], *, other_model: bool = False) -> Matching:
    """Match cells by system reference, stack and task, whatever the fingerprints.

    Args:
        baseline: Cells of one folder.
        candidate: Cells of the other.
        other_model: Match whatever the reference, where each folder has one model only.
    """
    single = all(len({cell.spec.system.ref for cell in cells}) == 1 for cells in (baseline, candidate))
    by_reference = not (other_model and single)
    ours, theirs = _grouped(baseline, by_reference), _grouped(candidate, by_reference)
    result = Matching()
    for key, cells in ours.items():
        remaining, waiting = list(theirs.pop(key, [])), list[StoredCell]()
        # Of several runs in a folder it is the very cell; then one on the same samples; then any of its kind.
        for alike in (_identity, _on_samples, _told_apart):
            for cell in cells:
                twin = next((c for c in remaining if alike(c) == alike(cell)), None)
                if twin is None:
                    waiting.append(cell)
                else:
                    remaining.remove(twin)
                    result.matches.append(_match(cell, twin))
            cells, waiting = waiting, []
        if len(cells) == len(remaining) == 1:
            result.matches.append(_match(cells[0], remaining.pop()))
        else:
            result.matches.extend(Match(cell, None) for cell in cells)
        result.new.extend(remaining)
    result.new.extend(cell for cells in theirs.values() for cell in cells)
    result.matches.sort(key=lambda m: _order(m.baseline))
    result.new.sort(key=_order)
    return result


def _order(cell: StoredCell) -> tuple[str, ...]:
    return cell.record.placement.family, cell.spec.task.id, cell.record.placement.label, cell.id


def _grouped(cells: Sequence[StoredCell], by_reference: bool) -> dict[str, list[StoredCell]]:
    groups: dict[str, list[StoredCell]] = defaultdict(list)
    for cell in cells:
        system = cell.spec.system
        stack = [[m.method, m.knobs, m.budget] for m in cell.spec.stack]
        reference = system.ref if by_reference else ""
        groups[canonical([system.kind, reference, system.replica, stack, cell.spec.task.id])].append(cell)
    return groups


def _identity(cell: StoredCell) -> str:
    return cell.id


def _on_samples(cell: StoredCell) -> str:
    return canonical([_told_apart(cell), cell.spec.task.limit, cell.spec.task.data])


def _told_apart(cell: StoredCell) -> str:
    return canonical([_value(cell.spec, name) for name in TELL_APART])


def _value(spec: CellSpec, name: str) -> Any:
    return spec.system.dtype if name == "dtype" else getattr(spec, name)


def _match(ours: StoredCell, theirs: StoredCell) -> Match:
    a, b = ours.spec, theirs.spec
    pairs = [
        ("model", a.system.ref, b.system.ref),
        ("model fingerprint", a.system.fingerprint, b.system.fingerprint),
        *((f"version of {m.method}", m.version, n.version) for m, n in zip(a.stack, b.stack, strict=True)),
        *((name, _value(a, name), _value(b, name)) for name in TELL_APART),
    ]
    before, after = (cell.environment for cell in (ours, theirs))
    pairs.append(("hardware", before.hardware, after.hardware))
    pairs += [(name, before.packages.get(name), after.packages.get(name)) for name in DECIDE]
    differs = tuple(f"{name} ({_brief(x)} to {_brief(y)})" for name, x, y in pairs if x != y)
    refused = "" if (a.mode, a.protocol) == (b.mode, b.protocol) else "not comparable: other mode or protocol"
    return Match(ours, theirs, differs, refused)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={str(item)[:16]}" for key, item in value.items())
    return str(value)[:48] or "none"
