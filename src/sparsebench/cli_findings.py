"""The command that reproduces published findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli_options import Executor


def reproduce(
    finding: Annotated[
        str, typer.Argument(metavar="[FINDING]", help="A finding by name, or a .yaml file; none: list them.")
    ] = "",
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="RESULTS", help="Apply the rule to these results; nothing is run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Results folder; default: results/FINDING.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="REF", help="Replaces the suite's language model.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="At most N samples of each task: a trial.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="cpu, cuda; default: cuda where there is one.")
    ] = None,
    executor: Annotated[
        Executor, typer.Option("--executor", help="In this process, in a process for each worker, or in Ray actors.")
    ] = Executor.inline,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes or actors.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Run a published finding and say whether it holds; cells that are stored already are not computed again."""
    from sparsebench.findings.definition import findings
    from sparsebench.findings.text import entry, listed

    if not finding:
        every = findings()
        typer.echo(_json([entry(each) for each in every]) if as_json else listed(every), nl=False)
        return
    from sparsebench.findings.reproduce import reproduce as reproduced
    from sparsebench.findings.text import text, to_json

    found = reproduced(
        finding,
        results or (),
        out=out,
        model=model,
        limit=limit,
        device=device,
        executor=executor.value,
        workers=workers,
        progress=not as_json,
    )
    typer.echo(_json(to_json(found)) if as_json else text(found), nl=False)


def _json(data: object) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def add_to(app: typer.Typer) -> None:
    """Give an application this command."""
    app.command()(reproduce)
