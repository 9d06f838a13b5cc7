"""Whether stored results are what they say: every number is computed again, every hash checked.

What can be checked from the folder alone is checked. What would need the model or the data (fingerprints, the rows
behind a data hash) is named as such, never passed over.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparsebench.errors import IntegrityError
from sparsebench.journal import FILE as WHOLE
from sparsebench.leases import FILE as LEASES
from sparsebench.reports.notation import printable
from sparsebench.reports.pairing import align, metric_mismatch, task_mismatch
from sparsebench.reports.sources import Cells, Samples, Source, open_sources, read_samples
from sparsebench.reports.verify_record import NO_SIZES, Found, Severity, record_findings
from sparsebench.reports.verify_samples import sample_findings
from sparsebench.reports.verify_suite import suite_findings
from sparsebench.store import CELL_ID, StoredCell
from sparsebench.tasks.registry import definitions

ALIKE = 10
"""Samples that two methods must have changed, in the same way, before their being alike is no accident."""
TELLING = 20
"""Samples with a score at which two models that get the same ones right are hardly alike by chance."""
NOTHING = ("0.0", "0", "nan", "None", "")
"""How no score is printed."""
UNLIKE = 0.25
"""Relative difference between two runs of one baseline beyond which they are not runs of one system."""
ASIDE = re.compile(r"\.[0-9a-f]{16}-")
"""Cells that were being written when a run was killed."""
OURS = {LEASES, WHOLE}
"""Files that a run keeps beside the cells."""
FILES = {"spec.json", "record.json", "env.json", "samples.parquet"}
UNCHECKED = (
    "model fingerprints and data hashes need the models and the data, times and memory the machine, and scores of data "
    "whose texts must not be stored the texts: run a cell again to check them"
)


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
    tasks = {task.task: task for task in definitions()}
    findings: list[Finding] = []
    for source in sources:
        findings += [Finding("error", "record", cell, message) for cell, message in sorted(source.broken.items())]
        findings += _folder(source)
        without_sizes = False
        for cell in source.cells.values():
            found = [Finding(s, c, cell.id, printable(t)) for s, c, t in record_findings(cell)]
            samples, problem = _samples(cell)
            if problem:
                found.append(Finding("error", "samples", cell.id, problem))
            if samples is not None:
                found += [Finding(s, c, cell.id, printable(t)) for s, c, t in sample_findings(cell, samples, tasks)]
                found += [Finding(s, c, cell.id, printable(t)) for s, c, t in _pairing(cells, source, cell, samples)]
                output = _output(cells, source, cell, samples)
                outputs[cell.spec.task.id, cell.spec.task.data, cell.spec.system.ref, output.digest].append(output)
            without_sizes |= any(finding.message == NO_SIZES for finding in found)
            found = [finding for finding in found if finding.message != NO_SIZES]
            findings += found
            if not any(finding.severity == "error" for finding in found):
                findings.append(Finding("ok", "cell", cell.id, _all_well(cell)))
        if without_sizes:
            findings.append(Finding("cannot check", "cost", source.name, f"of some cells {NO_SIZES}"))
    return findings + list(_copies(outputs))


def _all_well(cell: StoredCell) -> str:
    outcome = cell.record.outcome
    if outcome.status == "failed":
        return f"failed cell, complete record: {printable(outcome.error or 'no reason was recorded', 120)}"
    return f"{len(outcome.metrics)} metrics are what the samples give"


def _folder(source: Source) -> Iterator[Finding]:
    """What concerns a results folder as a whole."""

    def found(severity: Severity, check: str, message: str) -> Finding:
        return Finding(severity, check, source.name, printable(message))

    if not source.cells and not source.broken:
        yield found("error", "folder", "there are no cells")
    for severity, check, message in suite_findings(source):
        yield found(severity, check, message)
    yield found("cannot check", "provenance", UNCHECKED)
    cells = source.root / "cells"
    links = [path for path in (source.root / "suite.json", cells, *cells.iterdir()) if path.is_symlink()]
    links += [path for cell in source.cells.values() for path in cell.folder.iterdir() if path.is_symlink()]
    if links:
        yield found("error", "folder", f"links instead of files: {', '.join(sorted(p.name for p in links)[:5])}")
    strange = sorted(
        p.name for p in cells.iterdir() if not (CELL_ID.fullmatch(p.name) or ASIDE.match(p.name) or p.name in OURS)
    )
    more = sorted(p.name for c in source.cells.values() for p in c.folder.iterdir() if p.name not in FILES)
    if strange or more:
        yield found("cannot check", "folder", f"not read, since no cell has them: {', '.join((strange + more)[:5])}")
    without = sum(cell.environment.commit is None for cell in source.cells.values())
    if without:
        yield found("cannot check", "provenance", f"{without} cells do not name the commit that computed them")
    shortened = sum(bool(cell.record.left_out) for cell in source.cells.values())
    if shortened:
        yield found("cannot check", "scores", f"{shortened} cells are packed without the texts that were scored")
    unlicensed = sorted({f.name for c in source.cells.values() for f in c.record.data if not f.license})
    if unlicensed:
        yield found("cannot check", "licence", f"no licence is named for {', '.join(unlicensed[:5])}")


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
    yield from _baseline(cell, baseline, _declared(source))
    base, problem = _samples(baseline)
    if base is None:
        yield "error", "baseline", f"its baseline {named} cannot be used: {problem or 'it has no samples'}"
        return
    aligned = align(samples, base)
    if isinstance(aligned, str):
        yield "error", "baseline", f"{aligned}, compared with its baseline {named}"


def _declared(source: Source) -> set[str]:
    """Labels of the rows that a suite names as baselines."""
    suite = source.suite.get("suite")
    grids = suite.get("grids") if isinstance(suite, dict) else None
    found = {"dense"}
    for grid in grids if isinstance(grids, list) else []:
        if isinstance(grid, dict):
            methods = grid.get("methods")
            each = [grid, *(methods if isinstance(methods, list) else [])]
            found |= {str(entry["baseline"]) for entry in each if isinstance(entry, dict) and entry.get("baseline")}
    return found


def _baseline(cell: StoredCell, baseline: StoredCell, declared: set[str]) -> Iterator[Found]:
    """What a cell is compared with is a baseline: of the same model, named as one, with the same metrics."""
    place, system = baseline.record.placement, baseline.spec.system
    if place.role != "baseline" and place.baseline is not None and place.label not in declared:
        yield "error", "baseline", f"its baseline {baseline.id} is a {place.role} itself"
    if cell.spec.system.kind == system.kind == "causal-lm":
        ours = cell.spec.system
        if (ours.ref, ours.fingerprint) != (system.ref, system.fingerprint):
            yield "error", "baseline", f"its baseline {baseline.id} is another model"
    theirs = {m.metric.name: m for m in baseline.record.outcome.metrics}
    for recorded in cell.record.outcome.metrics:
        other = theirs.get(recorded.metric.name)
        wrong = metric_mismatch(recorded.metric, other.metric) if other is not None else None
        if wrong:
            yield "error", "metrics", f"{recorded.metric.name}: {wrong}, compared with its baseline {baseline.id}"
        values = (recorded.value, other.value if other is not None else None)
        noise = cell.record.placement.role == "noise" and recorded.metric.headline
        if noise and values[0] is not None and values[1] and abs(values[0] / values[1] - 1) > UNLIKE:
            yield (
                "error",
                "noise",
                f"{recorded.metric.name} of the A/A row is {values[0]:.4g}, of its baseline {values[1]:.4g}",
            )


@dataclass(frozen=True)
class _Output:
    """A digest of what a cell answered."""

    cell: StoredCell
    digest: str
    changed: int
    """Samples that differ from the baseline's."""
    scored: int
    """Samples with a headline score that is not zero."""


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
    headlines = {m.metric.column for m in cell.record.outcome.metrics if m.metric.headline} & set(columns)
    scored = max((sum(v not in NOTHING for v in samples.texts(column)) for column in headlines), default=0)
    return _Output(cell, digest.hexdigest(), changed, scored)


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
        if all(output.cell.record.left_out and output.scored < TELLING for output in methods.values()):
            # Of models that get next to nothing right, the texts alone would say whether they are alike.
            message = f"different methods with the same scores, packed without the texts that were scored: {named}"
            yield Finding("cannot check", "copies", first.cell.id, printable(message))
        elif changed >= ALIKE:
            message = f"different methods with the same outputs on all samples: {named}"
            yield Finding("error", "copies", first.cell.id, printable(message))
        else:
            message = f"different methods with the same outputs, but only {changed} samples changed at all: {named}"
            yield Finding("cannot check", "copies", first.cell.id, printable(message))


def _method(cell: StoredCell) -> str:
    return "+".join(member.method for member in cell.spec.stack)


def text(findings: Sequence[Finding], *, verbose: bool = False) -> str:
    """Findings for a terminal: errors and what cannot be checked; with `verbose` also what is well.

    What cannot be checked of many cells for one reason is said once.
    """
    same: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.severity == "cannot check":
            same[finding.check, finding.message].append(finding)
    lines = [str(finding) for finding in findings if finding.severity == "error"]
    for group in same.values():
        first = group[0]
        subject = first.subject if len(group) == 1 else f"{len(group)} cells"
        lines.append(str(Finding(first.severity, first.check, subject, first.message)))
    lines += [str(finding) for finding in findings if verbose and finding.severity == "ok"]
    counts = {s: sum(f.severity == s for f in findings) for s in ("error", "cannot check", "ok")}
    return "\n".join([*lines, ", ".join(f"{count} {severity}" for severity, count in counts.items())]) + "\n"
