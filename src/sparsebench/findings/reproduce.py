"""From a finding to its answer: run its suite, or take results that are there, and apply the rule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import CellsFailedError
from sparsebench.findings import rules
from sparsebench.findings.answer import Answer
from sparsebench.findings.definition import Finding, load
from sparsebench.suite import Suite

if TYPE_CHECKING:
    from sparsebench.findings.results import Results


@dataclass(frozen=True)
class Reproduction:
    """A finding with its answer.

    Attributes:
        finding: The finding.
        answer: What came of it.
        folders: The results that it rests on.
        model: The model under test.
        limited: Whether tasks were cut short with a limit, so that the answer is of a trial.
    """

    finding: Finding
    answer: Answer
    folders: list[Path]
    model: str
    limited: bool


def reproduce(
    name: str | Finding,
    results: Sequence[str | os.PathLike[str]] = (),
    *,
    out: Path | None = None,
    model: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    executor: str = "inline",
    workers: int = 2,
    progress: bool = False,
) -> Reproduction:
    """Run a finding's suite and apply its rule; with `results`, apply the rule to them and run nothing.

    Args:
        name: A finding's name, the path of its YAML, or a `Finding`.
        results: Results folders that hold what the rule asks for.
        out: Where the suite's results go; cells that are there are not computed again.
        model: Reference that replaces the suite's language model.
        limit: Samples of each task at most.
        device: `cpu`, `cuda`; None: cuda where there is one.
        executor: What runs the suite's cells, as in `suite_run.run_suite`.
        workers: Processes or actors.
        progress: Whether to show it.

    Raises:
        InputError: The finding, a reference or the results are wrong.
        CellsFailedError: Cells failed, or were not begun since the user stopped the run.
    """
    finding = name if isinstance(name, Finding) else load(name)
    folders = [Path(folder) for folder in results]
    if not folders:
        how: dict[str, Any] = {"device": device, "executor": executor, "workers": workers, "progress": progress}
        folders = [_run(finding, out, model, limit, how)]
    from sparsebench.findings.results import Results

    found = Results(folders, finding.suite)
    answer = apply(finding.rule, found)
    models = sorted({cell.spec.system.ref for cell in found.used if cell.spec.system.kind != "lexical"})
    limited = any(cell.spec.task.limit is not None for cell in found.used)
    return Reproduction(finding, answer, folders, ", ".join(models), limited)


def _run(finding: Finding, out: Path | None, model: str | None, limit: int | None, how: dict[str, Any]) -> Path:
    def finished(suite: Suite) -> Path:
        return _finished(finding, suite, out, model, limit, how)

    if isinstance(finding.rule, rules.Tolerance):
        from sparsebench.findings import stepwise

        return stepwise.run(finding, finding.rule, finished)
    return finished(finding.suite)


def _finished(
    finding: Finding, suite: Suite, out: Path | None, model: str | None, limit: int | None, how: dict[str, Any]
) -> Path:
    from sparsebench.suite_run import run_suite

    outcome = run_suite(suite, out, model, limit=limit, **how)
    if outcome.interrupted or outcome.failed:
        what = f"{outcome.left} cells are left" if outcome.interrupted else f"{outcome.failed} cells failed"
        raise CellsFailedError(f"{finding.finding}: {what}, so there is no answer", "the same command goes on")
    if outcome.lost:
        what = f"{outcome.lost} cells went from {outcome.folder} during the run"
        raise CellsFailedError(f"{finding.finding}: {what}, so there is no answer", "the same command goes on")
    return outcome.folder


def apply(rule: rules.Rule, results: Results) -> Answer:
    """The answer of a rule to some results.

    Raises:
        InputError: The results lack a row that the rule asks for.
    """
    from sparsebench.findings import (
        collections,
        contest,
        contextual,
        first_to_fall,
        interpolation,
        knee,
        lengths,
        matched,
        over_tasks,
        reversals,
        tolerance,
    )

    match rule:
        case rules.Matched():
            return matched.answer(rule, results)
        case rules.FirstToFall():
            return first_to_fall.answer(rule, results)
        case rules.Knee():
            return knee.answer(rule, results)
        case rules.Superiority():
            return contest.superiority(rule, results)
        case rules.Equivalence():
            return contest.equivalence(rule, results)
        case rules.Tolerance():
            return tolerance.answer(rule, results)
        case rules.Contextual():
            return contextual.answer(rule, results)
        case rules.Interpolation():
            return interpolation.answer(rule, results)
        case rules.Pooled():
            return collections.pooled(rule, results)
        case rules.SafeLevel():
            return collections.safe_level(rule, results)
        case rules.Reversals():
            return reversals.answer(rule, results)
        case rules.NoneBest():
            return over_tasks.none_best(rule, results)
        case rules.BreaksEarly():
            return over_tasks.breaks_early(rule, results)
        case rules.LengthTolerance():
            return lengths.answer(rule, results)
    raise TypeError(f"no module answers rules of type {type(rule).__name__}")
