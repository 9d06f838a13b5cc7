"""The command that trains small learned-sparse encoders on a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train_sparse(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS", help="A YAML file: what is trained, and its cells.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder for each cell is made in it.")],
    steps: Annotated[
        int | None, typer.Option("--until", min=1, metavar="N", help="Stop each cell at step N; a later call goes on.")
    ] = None,
) -> None:
    """Train each cell of SETTINGS under one budget; what was stopped goes on. Writes a suite that compares them."""
    from sparsebench.retrieval.training.campaign import train_all
    from sparsebench.retrieval.training.settings import read_settings

    for line in train_all(read_settings(settings), out, steps):
        typer.echo(line)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-sparse")(train_sparse)
