"""Commands that compare results and check them: check, compare, verify, history."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.errors import InputError

ResultsArgument = Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")]
FoldersArgument = Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Results folders.")]
AlphaOption = Annotated[
    float | None, typer.Option("--alpha", metavar="A", help="Level of the tests, instead of the suite's.")
]


class CheckFormat(StrEnum):
    """Forms of a check's outcome."""

    text = "text"
    json = "json"
    junit = "junit"
    github = "github"
    md = "md"


class HistoryFormat(StrEnum):
    """Forms of a history."""

    text = "text"
    json = "json"
    atom = "atom"


def checked_alpha(alpha: float | None) -> float | None:
    """A level as an option, or None.

    Raises:
        InputError: It is no level.
    """
    if alpha is not None and not 0 < alpha < 0.5:
        raise InputError(f"--alpha {alpha:g}: it should be above 0 and below 0.5")
    return alpha


def share(text: str, option: str) -> float:
    """`5%` or `0.05` as a fraction.

    Raises:
        InputError: It is neither.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise InputError(f"{option} {text!r}: it should be above 0% and below 100%", f"{option} 5%")
    return value


def check(
    baseline: Annotated[Path, typer.Option("--baseline", metavar="A")],
    candidate: Annotated[Path, typer.Option("--candidate", metavar="B")],
    format: Annotated[CheckFormat, typer.Option("--format")] = CheckFormat.text,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail what is inconclusive too: quality must be shown to be kept.")
    ] = False,
    alpha: AlphaOption = None,
) -> None:
    """Compare two results folders; exit 1 when quality or cost got worse, or a cell is missing or failed."""
    from sparsebench.reports.check import check as compare_folders
    from sparsebench.reports.gate_formats import render

    outcome = compare_folders(baseline, candidate, alpha=checked_alpha(alpha), strict=strict)
    typer.echo(render(outcome, format.value))
    if not outcome.passed:
        raise typer.Exit(1)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    format: Annotated[CheckFormat, typer.Option("--format")] = CheckFormat.text,
    margin: Annotated[
        str | None, typer.Option("--margin", metavar="X", help="Acceptable loss, relative: 5%; else the suite's.")
    ] = None,
    alpha: AlphaOption = None,
) -> None:
    """Two results folders or two lm-eval logs: delta, interval, flips, power, verdict; exit 1 when B is worse.

    B is worse where a headline metric of it regressed, or must not be compared with A's. Costs are not compared.
    """
    from sparsebench.reports.check import compare as compare_results
    from sparsebench.reports.gate_formats import render

    accepted = None if margin is None else share(margin, "--margin")
    outcome = compare_results(a, b, alpha=checked_alpha(alpha), margin=accepted)
    typer.echo(render(outcome, format.value))
    if not outcome.passed:
        raise typer.Exit(1)


def verify(results: ResultsArgument) -> None:
    """Compute every number again from the samples; check hashes, ids and schema."""
    from sparsebench.reports.verify import passed, text
    from sparsebench.reports.verify import verify as verify_results

    findings = verify_results(results)
    typer.echo(text(findings))
    if not passed(findings):
        raise typer.Exit(1)


def history(
    results: FoldersArgument,
    format: Annotated[HistoryFormat, typer.Option("--format")] = HistoryFormat.text,
    alpha: AlphaOption = None,
) -> None:
    """What changed over several results folders, oldest first: steps of quality, counts and cost."""
    from sparsebench.reports import history as steps

    typer.echo(steps.render(steps.history(*results, alpha=checked_alpha(alpha)), format.value), nl=False)


def add_to(app: typer.Typer) -> None:
    """Give an application these commands."""
    for command in (check, compare, verify, history):
        app.command()(command)
