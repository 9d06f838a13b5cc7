"""Commands for the person who decides: explain, audit, claim, recommend, ledger, export."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench.cli_gates import AlphaOption, FoldersArgument, checked_alpha, share
from sparsebench.errors import InputError

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


TRACKERS = frozenset({"wandb", "mlflow", "trackio"})


class ExportFormat(StrEnum):
    """What other tools read."""

    lm_eval = "lm-eval"
    model_card = "model-card"
    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"
    packed = "packed"
    trec = "trec"
    mteb = "mteb"


def explain(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder, or one cell's folder.")],
    cell: Annotated[
        str, typer.Argument(metavar="[CELL]", help="Its id, the beginning of it, or `wanda 50% on TASK`.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """A cell's FLOPs and bytes, line by line."""
    from sparsebench import explain as explaining
    from sparsebench.store import CELL_ID, Store

    place = results.resolve()
    if not cell and CELL_ID.fullmatch(place.name) and place.parent.name == "cells":
        results, cell = place.parent.parent, place.name
    if not cell:
        raise InputError("which cell?", "sparsebench explain RESULTS CELL; the ids are folders of RESULTS/cells")
    found = explaining.explain(explaining.find_cell(Store.open(results), cell))
    typer.echo(_json(explaining.to_json(found)) if as_json else explaining.text(found), nl=False)


def audit(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, a file, or a model reference.")],
    every: Annotated[bool, typer.Option("--all", help="Show each linear layer.")] = False,
    as_json: JsonOption = False,
) -> None:
    """True zeros, patterns and bits of a checkpoint, and which kernels could use them; pickles are never opened."""
    from sparsebench import audit as auditing

    found = auditing.audit(checkpoint)
    typer.echo(_json(auditing.to_json(found)) if as_json else auditing.text(found, every=every), nl=False)


def claim(
    sentence: Annotated[str, typer.Argument(metavar="SENTENCE")],
    results: FoldersArgument,
    alpha: AlphaOption = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 unless it holds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Whether results hold a claim: HOLDS, REFUTED, or UNDERPOWERED and how many samples it lacks."""
    from sparsebench.reports import claim_formats
    from sparsebench.reports.claims import ask

    found = ask(sentence, *results, alpha=checked_alpha(alpha))
    typer.echo(claim_formats.to_json(found) if as_json else claim_formats.text(found), nl=False)
    if gate and found.answer != "HOLDS":
        raise typer.Exit(1)


def recommend(
    results: FoldersArgument,
    model: Annotated[str, typer.Option("--model", metavar="M", help="Part of the model's name.")] = "",
    context: Annotated[int, typer.Option("--context", min=0, metavar="L", help="Tokens of the prompt.")] = 2048,
    decode: Annotated[int, typer.Option("--decode", min=0, metavar="T", help="Tokens of the answer.")] = 256,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="B", help="Requests at a time.")] = 1,
    max_loss: Annotated[str, typer.Option("--max-loss", metavar="X", help="Largest loss, relative: 5%.")] = "5%",
    balance: Annotated[
        float, typer.Option("--balance", min=1e-3, help="FLOPs of the machine for each byte of its memory bandwidth.")
    ] = 300.0,
    alpha: AlphaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Methods that keep a loss below a limit, ranked by what a request would cost with them."""
    from sparsebench.cost import Request
    from sparsebench.reports import recommend as recommending

    wanted = recommending.Wanted(
        Request(context, decode, batch), share(max_loss, "--max-loss"), model, balance, checked_alpha(alpha) or 0.05
    )
    found = recommending.recommend(wanted, *results)
    typer.echo(_json(recommending.to_json(found)) if as_json else recommending.text(found), nl=False)


def ledger(
    claims: Annotated[Path, typer.Argument(metavar="CLAIMS", help="A folder of claims, or one claim's .yaml file.")],
    results: FoldersArgument,
    as_json: JsonOption = False,
) -> None:
    """What results say of claims that papers made."""
    from sparsebench.reports import ledger as claims_ledger

    found = claims_ledger.evaluate(claims_ledger.read_claims(claims), results)
    typer.echo(claims_ledger.to_json(found) if as_json else claims_ledger.text(found), nl=False)


def export(
    results: FoldersArgument,
    format: Annotated[ExportFormat, typer.Option("--format")],
    out: Annotated[Path | None, typer.Option("--out", metavar="PLACE", help="A file, or a folder.")] = None,
    text_up_to: Annotated[
        int | None,
        typer.Option("--text-up-to", min=0, metavar="N", help="packed: keep answers where samples are at most N."),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option("--bits", min=8, max=52, metavar="N", help="packed: round the samples' floats to N bits."),
    ] = None,
    project: Annotated[
        str, typer.Option("--project", metavar="P", help="Trackers: the runs' project.")
    ] = "sparsebench",
) -> None:
    """Results for other tools (lm-eval's files, a model card's metadata), or packed into one file for publishing."""
    from sparsebench.reports import lm_eval_out, model_card, retrieval_out

    if format is ExportFormat.packed:
        _pack(results, out, text_up_to, bits)
        return
    if format.value in TRACKERS:
        from sparsebench.reports.trackers import log_results

        sent = log_results(results, format.value, project)
        typer.echo(f"sent {len(sent)} cells to {format.value}, project {project}")
        return
    several = {
        ExportFormat.lm_eval: lm_eval_out.write_logs,
        ExportFormat.trec: retrieval_out.write_trec,
        ExportFormat.mteb: retrieval_out.write_mteb,
    }
    if format in several:
        if out is None:
            raise InputError(f"files of the form {format.value} are several", "give --out FOLDER")
        for place in several[format](results, out):
            typer.echo(f"wrote {place}")
        return
    text = model_card.model_card(results)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None
    typer.echo(f"wrote {out}")


def _pack(results: list[Path], out: Path | None, text_up_to: int | None, bits: int | None) -> None:
    from sparsebench.packing import pack
    from sparsebench.store import Store

    if out is None or len(results) != 1:
        raise InputError("one results folder is packed into one file", "give one RESULTS and --out FILE.tar.xz")
    made = pack(Store.open(results[0]), out, text_up_to, bits)
    typer.echo(f"wrote {made.path}: {made.cells} cells, {made.size / 2**20:.1f} MiB", nl=False)
    typer.echo(f", {made.without_text} of them without texts" if made.without_text else "")


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def add_to(app: typer.Typer) -> None:
    """Give an application these commands."""
    for command in (explain, audit, claim, recommend, ledger, export):
        app.command()(command)
