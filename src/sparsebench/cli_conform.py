"""`sparsebench conform`: hold one method to what every method owes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sparsebench.errors import InputError

MARKS = {"ok": "●", "failed": "✕", "not asked": "○"}


def conform(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="A method of SparseBench or of an installed plugin.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="REF",
            help="A language model or an encoder; default: a small one.",
        ),
    ] = None,
    knob: Annotated[
        list[str] | None, typer.Option("--knob", metavar="NAME=VALUE", help="A knob; may be given again.")
    ] = None,
) -> None:
    """Check that a method keeps to the contract of its family; 1: it does not."""
    from rich.console import Console
    from rich.table import Table

    from sparsebench.conformance import conform as checked

    results = checked(name, _knobs(knob or []), model)
    table = Table("", "check", "detail", header_style="bold", box=None, pad_edge=False)
    for result in results:
        table.add_row(MARKS[result.status], result.check, result.detail)
    counts = {status: sum(result.status == status for result in results) for status in MARKS}
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)
    console.print(table)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)


def _knobs(given: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as knobs by name; values as in YAML.

    Raises:
        InputError: One has another form.
    """
    import yaml

    knobs = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            knobs[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals):
            raise InputError(f"--knob {text!r}: it should be NAME=VALUE", "--knob phase=decode")
    return knobs


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(conform)
