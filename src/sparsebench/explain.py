"""What a stored cell cost, line by line, computed again from its counters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsebench.account import ACTIVE_BYTES, ACTIVE_ZEROS, Account, Counted, WeightStorage, account
from sparsebench.cost import BYTES, PHASES, ModelShape
from sparsebench.errors import InputError, SparseBenchError
from sparsebench.records import CellRecord, CellSpec
from sparsebench.store import CELL_ID, Store, StoredCell

AGREES = 1e-6
"""Relative difference up to which the lines are what was recorded."""


@dataclass(frozen=True)
class Total:
    """A sum of lines beside what the record holds.

    Attributes:
        unit: `FLOPs`, or `bytes` for each decoded token.
        system: `dense` or `sparse`.
        lines: The sum.
        recorded: What the record says.
    """

    unit: str
    system: str
    lines: float
    recorded: float

    @property
    def agrees(self) -> bool:
        """Whether the two are equal."""
        return math.isclose(self.lines, self.recorded, rel_tol=AGREES)


@dataclass(frozen=True)
class Explanation:
    """A cell's cost.

    Attributes:
        cell: The cell.
        account: Its lines; None where the model's sizes are not to be had.
        source: Where the sizes come from, or why there are none.
        totals: The sums of the lines beside the recorded ones.
    """

    cell: StoredCell
    account: Account | None
    source: str
    totals: tuple[Total, ...] = ()


def find_cell(store: Store, name: str) -> StoredCell:
    """A cell by its id, the beginning of it, or its label: `wanda 50%`, `wanda 50% on wikitext2-perplexity`.

    Raises:
        InputError: None or several.
    """
    ids = store.ids()
    if CELL_ID.fullmatch(name) and name in ids:
        return store.read(name)
    begins = [identity for identity in ids if len(name) >= 4 and identity.startswith(name)]
    if len(begins) == 1:
        return store.read(begins[0])
    label, _, task = name.partition(" on ")
    found = [
        cell
        for cell in _readable(store)
        if cell.record.placement.label == label.strip() and task.strip() in ("", cell.spec.task.id)
    ]
    if len(found) == 1:
        return found[0]
    named = sorted({f"{c.id} {c.record.placement.label} on {c.spec.task.id}" for c in (found or _readable(store))})
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    what = f"{len(found)} cells are called {name!r}" if found else f"there is no cell {name!r} in {store.root}"
    raise InputError(what, f"there are: {'; '.join(named[:8])}{more}")


def _readable(store: Store) -> Iterable[StoredCell]:
    for identity in store.ids():
        try:
            yield store.read(identity)
        except SparseBenchError:
            continue


def explain(cell: StoredCell, *, look_up: bool = True) -> Explanation:
    """Account for a cell.

    Args:
        cell: The cell.
        look_up: Whether to read the model's configuration where the record has no sizes.

    Raises:
        InputError: The cell failed.
    """
    from sparsebench.systems.sizes import recorded_shape, weightless

    outcome = cell.record.outcome
    if outcome.status == "failed":
        raise InputError(f"cell {cell.id} failed, so it cost nothing that was counted", outcome.error)
    if cell.spec.system.kind != "causal-lm":
        return Explanation(cell, None, "a retriever has no cost model: what it counted is all there is")
    shape, source = recorded_shape(cell.record.system), "sizes from the record"
    if shape is None and not look_up:
        return Explanation(cell, None, "the record has no sizes of the model")
    if shape is None:
        try:
            shape, source = weightless(cell.spec.system.ref).shape, "sizes from the model's configuration"
        except SparseBenchError as error:
            return Explanation(cell, None, f"the record has no sizes, and the model is not here: {error.message}")
    made = account_of(cell.spec, cell.record, shape)
    return Explanation(cell, made, source, tuple(_totals(made, cell.record)))


def account_of(spec: CellSpec, record: CellRecord, shape: ModelShape) -> Account:
    """The account of a language model's cell, from what its record counted.

    Args:
        spec: The cell's specification.
        record: Its record.
        shape: The model as it ran.
    """
    from sparsebench.systems.sizes import recorded_shape

    whole = recorded_shape(record.system, "unreduced")
    counters = record.outcome.counters
    prefill, decode = (Counted.of(shape, counters, phase, whole) for phase in PHASES)
    return account(shape, prefill, decode, storage_of(spec, record, shape, whole or shape), whole)


def storage_of(spec: CellSpec, record: CellRecord, shape: ModelShape, whole: ModelShape) -> WeightStorage:
    """How the weights that ran are stored, from what a record realised.

    Args:
        spec: The cell's specification.
        record: Its record.
        shape: The model as it ran.
        whole: The model before anything was removed from it; sparsity and bits are shares of its weights.
    """
    outcome = record.outcome
    if "zeros in all weights" not in outcome.densities:
        return WeightStorage()
    if ACTIVE_ZEROS in outcome.densities:
        bits = 8 * BYTES * outcome.densities[ACTIVE_BYTES]
        return WeightStorage(outcome.densities[ACTIVE_ZEROS], bits=bits)
    size = max(1, shape.stored_params)
    if outcome.sparsity_of == "prunable weights" and outcome.sparsity is not None:
        zeros = 1 - (1 - outcome.sparsity) * whole.stored_params / size
    else:  # a stack over several families has no one sparsity
        zeros = outcome.densities["zeros in all weights"] * float(record.system.get("parameters") or 0) / size
    if outcome.bits_per_weight is not None:
        return WeightStorage(zeros, bits=outcome.bits_per_weight * whole.stored_params / size)
    patterns = [str(m.budget["pattern"]) for m in spec.stack if m.budget and "pattern" in m.budget]
    return WeightStorage(zeros, patterns[-1] if patterns else "bitmap")


def _totals(made: Account, record: CellRecord) -> Iterable[Total]:
    outcome = record.outcome
    recorded: Mapping[tuple[str, str], float | None] = {
        ("flops", "dense"): outcome.flops_dense,
        ("flops", "sparse"): outcome.flops,
        ("bytes", "dense"): outcome.bytes_per_token_dense,
        ("bytes", "sparse"): outcome.bytes_per_token,
    }
    for (unit, system), value in recorded.items():
        if value is not None:
            total = sum(getattr(line, system) for line in made.lines if line.unit == unit)
            yield Total("FLOPs" if unit == "flops" else "bytes", system, total, value)


def text(found: Explanation) -> str:
    """For a terminal: what it is, what was counted, and the lines with their shares."""
    cell, outcome = found.cell, found.cell.record.outcome
    lines = [
        f"{cell.record.placement.label} on {cell.spec.task.id}  ({cell.id})",
        f"  {cell.spec.system.ref}",
        f"  {cell.spec.mode}; acts in {outcome.phase or 'no phase'}; {found.source}",
    ]
    if outcome.sparsity is not None:
        lines.append(f"  {100 * outcome.sparsity:.2f}% of {outcome.sparsity_of or 'what it counts'} left out")
    lines += [f"  {name}: {100 * value:.2f}%" for name, value in sorted(outcome.densities.items())]
    if found.account is None:
        lines += ["", *_counted(outcome.counters), *_recorded(found.cell.record)]
        return "\n".join([*lines, ""])
    for phase in PHASES:
        for unit in ("flops", "bytes"):
            chosen = [line for line in found.account.lines if (line.phase, line.unit) == (phase, unit)]
            if not chosen:
                continue
            dense, sparse = sum(line.dense for line in chosen), sum(line.sparse for line in chosen)
            each = "FLOPs" if unit == "flops" else "bytes read for each token, at batch 1"
            lines += ["", f"{phase}, {each}", f"  {'':<11}{'dense':>14}{'sparse':>14}  ratio"]
            for line in chosen:
                lines.append(f"  {line.item:<11}{_size(line.dense)}{_size(line.sparse)}  {_ratio(line)}  {line.how}")
            lines.append(f"  {'together':<11}{_size(dense)}{_size(sparse)}  {sparse / dense if dense else 1:5.3f}")
    lines.append("")
    for total in found.totals:
        word = "as recorded" if total.agrees else f"but {total.recorded:.6g} was recorded"
        lines.append(f"{total.unit} {total.system}: {total.lines:.6g}, {word}")
    lines.append(
        "FLOPs are ideal: every zero and every pair that is left out is skipped. Storage is priced at 16 bits."
    )
    return "\n".join([*lines, ""])


def _size(value: float) -> str:
    return f"{value:>14.4g}"


def _ratio(line: Any) -> str:
    return f"{line.sparse / line.dense:5.3f}" if line.dense else "    -"


def _counted(counters: Mapping[str, float]) -> list[str]:
    return [f"  {name:<34} {value:.6g}" for name, value in sorted(counters.items())]


def _recorded(record: CellRecord) -> list[str]:
    outcome = record.outcome
    named = {
        "FLOPs": (outcome.flops, outcome.flops_dense),
        "bytes read": (outcome.bytes_per_token, outcome.bytes_per_token_dense),
    }
    return [f"  {name}: {part:.6g} of {whole:.6g}" for name, (part, whole) in named.items() if part and whole]


def to_json(found: Explanation) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "cell": found.cell.id,
        "label": found.cell.record.placement.label,
        "task": found.cell.spec.task.id,
        "mode": found.cell.spec.mode,
        "source": found.source,
        "lines": [vars(line) for line in found.account.lines] if found.account else [],
        "totals": [{**vars(total), "agrees": total.agrees} for total in found.totals],
        "counters": found.cell.record.outcome.counters,
    }
