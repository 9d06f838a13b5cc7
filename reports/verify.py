"""Whether stored results are what they say: every number is computed again, every hash checked.

What can be checked from the folder alone is checked. What would need the model or the data (fingerprints, the rows
behind a data hash) is named as such, never passed over.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsebench.errors import IntegrityError
from sparsebench.reports.comparisons import same_value
from sparsebench.reports.notation import printable
from sparsebench.reports.pairing import align, task_mismatch, unusable
from sparsebench.reports.sources import Cells, Samples, Source, open_sources, read_samples
from sparsebench.store import StoredCell

Severity = Literal["error", "cannot check", "ok"]

ALIKE = 10
"""Samples that two methods must have changed, in the same way, before their being alike is no accident."""
HIGHEST_RATIO = 20.0
"""FLOPs or bytes over the dense system's beyond which a record is not plausible."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        severity: `error`, `cannot check` or `ok`.
        check: Which check.
        subject: A cell's id, or the results folder.
        message: What was found.
    """

    severity: Severity
    check: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity:12}  {self.check:12}  {self.subject}  {self.message}"


def passed(findings: Sequence[Finding]) -> bool:
    """Whether there is no error."""
    return not any(finding.severity == "error" for finding in findings)


def verify(*results_folders: str | os.PathLike[str]) -> list[Finding]:
    """Check everything about some results folders that can be checked without model and data.

    Each cell gets one finding with severity `ok` when nothing is wrong with it. Baselines are looked for in all
    folders.

    Raises:
        InputError: A folder that holds no results.
    """
    sources = open_sources(results_folders)
    cells = Cells(sources)
    outputs: dict[tuple[object, ...], list[_Output]] = defaultdict(list)
    findings: list[Finding] = []
    for source in sources:
        findings += [Finding("error", "record", cell, message) for cell, message in sorted(source.broken.items())]
        findings += _folder(source)
        for cell in source.cells.values():
            found = [Finding(severity, check, cell.id, printable(text)) for severity, check, text in _cell(cell)]
            samples, problem = _samples(cell)
            if problem:
                found.append(Finding("error", "samples", cell.id, problem))
            if samples is not None:
                found += [Finding(s, c, cell.id, printable(t)) for s, c, t in _numbers(cell, samples)]
                found += [Finding(s, c, cell.id, printable(t)) for s, c, t in _pairing(cells, source, cell, samples)]
                output = _output(cells, source, cell, samples)
                outputs[cell.spec.task.id, cell.spec.task.data, cell.spec.system.ref, output.digest].append(output)
            findings += found
            if not any(finding.severity == "error" for finding in found):
                findings.append(Finding("ok", "cell", cell.id, _all_well(cell)))
    return findings + list(_copies(outputs))


Found = tuple[Severity, str, str]


def _all_well(cell: StoredCell) -> str:
    outcome = cell.record.outcome
    if outcome.status == "failed":
        return f"failed cell, complete record: {printable(outcome.error or 'no reason was recorded', 120)}"
    return f"{len(outcome.metrics)} metrics are what the samples give"


def _folder(source: Source) -> Iterator[Finding]:
    """What concerns a results folder as a whole."""
    if not source.cells and not source.broken:
        yield Finding("error", "folder", source.name, "there are no cells")
    if not source.suite:
        yield Finding("cannot check", "suite", source.name, "no suite.json: margins and completeness are not known")
    yield Finding(
        "cannot check",
        "provenance",
        source.name,
        "model fingerprints and data hashes need the models and the data: run a cell again to check them",
    )
    links = sorted(path.name for cell in source.cells.values() for path in cell.folder.iterdir() if path.is_symlink())
    if links:
        yield Finding("error", "folder", source.name, f"links instead of files: {', '.join(links[:5])}")


def _cell(cell: StoredCell) -> Iterator[Found]:
    """What the record says of itself."""
    outcome, place = cell.record.outcome, cell.record.placement
    if outcome.status == "failed":
        if outcome.metrics or cell.record.samples_sha256:
            yield "error", "record", "a failed cell with metrics or samples"
        return
    if not outcome.metrics:
        yield "error", "record", "no metric"
    if cell.record.samples_sha256 is None:
        yield "error", "samples", "no samples were stored"
    if place.role != "baseline" and place.baseline is None:
        yield "cannot check", "baseline", "its grid names no baseline"
    if cell.environment.dirty:
        yield "cannot check", "provenance", "computed with uncommitted changes"
    if cell.spec.mode == "simulated" and outcome.speed:
        yield "error", "plausible", f"a simulated cell with a speed ({', '.join(sorted(outcome.speed))})"
    yield from _plausible(cell)


def _plausible(cell: StoredCell) -> Iterator[Found]:
    """Numbers within the bounds of what they can be."""
    outcome = cell.record.outcome
    shares = {"sparsity": outcome.sparsity, **{f"realised {name}": value for name, value in outcome.densities.items()}}
    for name, share in shares.items():
        if share is not None and not -1e-9 <= share <= 1 + 1e-9:
            yield "error", "plausible", f"{name} is {share}, outside 0 to 1"
    costs = {
        "FLOPs": (outcome.flops, outcome.flops_dense),
        "bytes a token": (outcome.bytes_per_token, outcome.bytes_per_token_dense),
    }
    for name, (part, whole) in costs.items():
        if part is None:
            continue
        if not (math.isfinite(part) and part >= 0) or (whole is not None and not (math.isfinite(whole) and whole > 0)):
            yield "error", "plausible", f"{name} {part} of {whole}"
        elif whole is None:
            yield "cannot check", "plausible", f"{name} without the dense system's"
        elif part > HIGHEST_RATIO * whole:
            yield "error", "plausible", f"{name} are {part / whole:.3g} times the dense system's"
    quantities = {
        "seconds": outcome.seconds,
        "prepare_seconds": outcome.prepare_seconds,
        "prepare_tokens": outcome.prepare_tokens,
        "peak_memory": outcome.peak_memory,
        "energy": outcome.energy,
        "decode_queries": outcome.decode_queries,
        **{f"counter {name}": value for name, value in outcome.counters.items()},
    }
    for name, quantity in quantities.items():
        if quantity is not None and not (math.isfinite(quantity) and quantity >= 0):
            yield "error", "plausible", f"{name} is {quantity}"


def _samples(cell: StoredCell) -> tuple[Samples | None, str]:
    if cell.record.samples_sha256 is None:
        return None, ""
    try:
        samples = read_samples(cell)
        ids = samples.texts("sample")
    except IntegrityError as error:
        return None, error.message
    if len(set(ids)) < len(ids):
        return None, "a sample comes twice"
    return samples, ""


def _numbers(cell: StoredCell, samples: Samples) -> Iterator[Found]:
    """Every metric from the samples."""
    for recorded in cell.record.outcome.metrics:
        metric = recorded.metric
        try:
            numerator, weight = samples.numerator(metric), samples.weight(metric)
        except IntegrityError as error:
            yield "error", "metrics", f"{metric.name}: {error.message}"
            continue
        wrong = unusable(metric, numerator, weight)
        if wrong:
            yield "error", "metrics", wrong
            continue
        value, n = metric.value(samples.frame), int((~np.isnan(numerator)).sum())
        if not same_value(value, recorded.value):
            yield "error", "metrics", f"{metric.name} is recorded as {recorded.value}, its samples give {value}"
        if n != recorded.n:
            yield "error", "metrics", f"{metric.name} is recorded with n = {recorded.n}, its samples are {n}"
    permitted = bool(cell.record.data) and all(fact.publish_text for fact in cell.record.data)
    if "target" in samples.columns and not permitted:
        yield "error", "licence", "the samples hold the data's answers, which its licence does not let be shown"


def _pairing(cells: Cells, source: Source, cell: StoredCell, samples: Samples) -> Iterator[Found]:
    """The baseline is there, with the same samples of the same task."""
    named = cell.record.placement.baseline
    if named is None or named == cell.id:
        return
    found = cells.find(source, named)
    if found is None:
        yield "error", "baseline", f"its baseline {named} is not among the results"
        return
    baseline = found[1]
    if baseline.record.outcome.status == "failed":
        yield "error", "baseline", f"its baseline {named} failed"
        return
    mismatch = task_mismatch(cell.spec.task, baseline.spec.task)
    if mismatch:
        yield "error", "baseline", f"{mismatch}, compared with its baseline {named}"
        return
    base, problem = _samples(baseline)
    if base is None:
        yield "error", "baseline", f"its baseline {named} cannot be used: {problem or 'it has no samples'}"
        return
    aligned = align(samples, base)
    if isinstance(aligned, str):
        yield "error", "baseline", f"{aligned}, compared with its baseline {named}"


@dataclass(frozen=True)
class _Output:
    """A digest of what a cell answered."""

    cell: StoredCell
    digest: str
    changed: int
    """Samples that differ from the baseline's."""


def _output(cells: Cells, source: Source, cell: StoredCell, samples: Samples) -> _Output:
    """A digest of the samples' outputs, whatever their order, and how many differ from the baseline's."""
    columns = [c for c in sorted(samples.columns) if c not in ("cluster", "target")]
    order = np.argsort(np.array(samples.texts("sample")), kind="stable")
    digest = hashlib.sha256()
    for column in columns:
        values = samples.texts(column)
        digest.update("\x1f".join([column, *(values[i] for i in order)]).encode("utf-8", "surrogatepass"))
    found = cells.find(source, cell.record.placement.baseline) if cell.record.placement.baseline else None
    base = _samples(found[1])[0] if found and found[1].id != cell.id else None
    changed = _changed(samples, base, columns) if base is not None else 0
    return _Output(cell, digest.hexdigest(), changed)


def _changed(samples: Samples, base: Samples, columns: Sequence[str]) -> int:
    paired = align(samples, base)
    if isinstance(paired, str):
        return 0
    differs = np.zeros(len(paired.ids), dtype=bool)
    for column in columns:
        if column in base.columns:
            differs |= np.array(paired.texts(column)) != np.array(base.texts(column))
    return int(differs.sum())


def _copies(outputs: dict[tuple[object, ...], list[_Output]]) -> Iterator[Finding]:
    """Different methods with the same outputs: one may be a copy of the other."""
    for same in outputs.values():
        methods = {_method(output.cell): output for output in same if output.cell.spec.stack}
        if len(methods) < 2:
            continue
        named = ", ".join(f"{name} ({output.cell.id})" for name, output in sorted(methods.items()))
        first = min(same, key=lambda output: output.cell.id)
        changed = min(output.changed for output in methods.values())
        if changed >= ALIKE:
            message = f"different methods with the same outputs on all samples: {named}"
            yield Finding("error", "copies", first.cell.id, printable(message))
        else:
            message = f"different methods with the same outputs, but only {changed} samples changed at all: {named}"
            yield Finding("cannot check", "copies", first.cell.id, printable(message))


def _method(cell: StoredCell) -> str:
    return "+".join(member.method for member in cell.spec.stack)


def text(findings: Sequence[Finding], *, verbose: bool = False) -> str:
    """Findings for a terminal: errors and what cannot be checked; with `verbose` also what is well."""
    shown = [str(f) for f in findings if verbose or f.severity != "ok"]
    counts = {s: sum(f.severity == s for f in findings) for s in ("error", "cannot check", "ok")}
    return "\n".join([*shown, ", ".join(f"{count} {severity}" for severity, count in counts.items())]) + "\n"
